"""Self-contained HTML pages: no network, and no text from the data that could become markup."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from cobra.util.printable import printable


def page_templates(package: str) -> Environment:
    """Return the templates in a package's folder `templates`, and those in this package's that all pages share.

    Every text is escaped, and what would hide or move the text around it is written out: see
    :func:`cobra.util.printable.printable`. A name that is not given to a template is an error. The filter `number`
    groups digits and `percent` has one decimal.

    Args:
        package: Its dotted name.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("cobra.util")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup, such as a macro's output, is a string of another type.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"number": "{:,}".format, "percent": "{:.1%}".format}
    return environment
