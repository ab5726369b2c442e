"""Tokenizer of the COCO caption evaluation, without Java.

coco-caption scores what Stanford's PTBTokenizer 3.4.1 (`-preserveLines -lowerCase`) makes of a caption, less seventeen
punctuation tokens. A scanner of the same kind is built here: at each position every rule is tried, the longest match
wins, and of equally long ones the first rule. The rules were found by observing that program's output. Where the
program looks past the end of a caption (an initial such as `K.` loses its dot before `A`, `The`, ...), the next caption
is taken to begin with such a word, as nearly all captions do.
"""

import re
from collections.abc import Callable, Iterable

# Letters, digits and the combining marks of the common scripts; neither superscripts nor vulgar fractions.
_W = (
    r"(?:[^\W_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u2189\u2460-\u24ff\u2776-\u2793]"
    r"|[\u02c2-\u02df\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0900-\u0903\u093c-\u094e\u0e31-\u0e4e])"
)
_A = "[A-Za-z0-9]"
_Q = "['\u2019]"
_LINK = r"[^\s\"<>|(){}]*[^\s\"<>|(){}.!?,;:'-]"
_MAIL = r"[A-Za-z0-9][^\s\"<>|(){}]{0,60}@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+"
_TITLES = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf cie "
    "cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov "
    "govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lt ltd maj mar md messrs mfg mich minn mlle mme mo "
    "mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty "
    "ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs tue tues "
    "univ va vs vt wed wis wisc wm wyo"
).replace(" ", "|")
_STATES = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_STARTERS = (
    "A About After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She Since "
    "So Some Such That The Their Then There These They This We What When While Yet You"
).replace(" ", "|")
_CURRENCY = {"\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u20a0": "$", "\x80": "$", "\u00a2": "cents"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def _replacing(changes: dict[str, str]) -> Callable[[str], str]:
    """Return an action that replaces characters."""
    table = str.maketrans(changes)
    return lambda text: text.translate(table)


_same = str
_straight = _replacing({"\u2019": "'", "\u2018": "`"})
_unbroken = _replacing({" ": "\u00a0"})
_round = _replacing({"(": "-lrb-", ")": "-rrb-"})
_telephone = _replacing({" ": "\u00a0", "(": "-lrb-", ")": "-rrb-"})


def _dropped(_: str) -> str:
    return ""


# A rule's first group, if it has one, is the token; what its pattern matches beyond that only counts as length.
# Where a rule reads on to a character that may not come, it has a limit, so that hostile text costs linear time.
_RULES: list[tuple[str, Callable[[str], str]]] = [
    # Tags are tokens; the spaces in them become no-break spaces.
    (r"</?[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *\"[^\"<>]*\")?)* */?>|<[!?][A-Za-z-][^>]{0,500}>", _unbroken),
    # Words that are written as one and scored as two.
    (
        rf"(?i:(can|gon|wan|got|gim|lem)(?:(?<=can)not|(?<=gon)na|(?<=wan)na|(?<=got)ta|(?<=gim)me|(?<=lem)me))(?!{_W})",
        _same,
    ),
    (rf"({_W}+?)[nN]['\u2019\u2018`][tT]", _same),
    ("[nN]['\u2019\u2018`][tT]", _straight),
    (rf"({_W}+){_Q}(?i:s|d|m|ll|re|ve)(?![A-Za-z])", _same),
    (rf"{_Q}(?i:s|d|m|ll|re|ve)(?![A-Za-z])", _straight),
    # Words with an apostrophe of their own.
    (r"'(?i:t)(?=(?i:is|was)(?![^\W_]))", _same),
    (rf"{_Q}(?i:em|n{_Q})|{_Q}(?i:(?:till?|cause)(?!{_W})|n(?=\s))|{_Q}[0-9]{{2}}(?:[sS](?!{_W})|(?=\s))", _same),
    (
        rf"(?:[A-Za-z0-9]+-)?(?:[dlno]|[DLNO]){_Q}{_W}{{2,}}(?:-{_W}+)*|[A-Za-z]+[aeiouyAEIOUY]{_Q}[aeiouA-Z][A-Za-z]*",
        _same,
    ),
    (rf"(?i:c{_Q}est|(?:presqu|qu){_Q}[a-z]+|(?:o|e|ne){_Q}er|li{_Q}l|nat{_Q}l|cap{_Q}n)(?!{_W})|[Oo][Ll]{_Q}", _same),
    (rf"[DJLdjl]{_Q}|[Yy]{_Q}(?={_W})", _same),
    # Addresses, names and tags of the net.
    (rf"(?i:https?://){_LINK}|(?:[A-Za-z]{_W}*\.)+(?i:com|net|org|edu)/{_LINK}", _same),
    (rf"{_MAIL}|<{_MAIL}>|@[A-Za-z_]\w*|#[A-Za-z]+", _same),
    ("&amp;", lambda _: "&"),
    ("&lt;", lambda _: "<"),
    ("&gt;", lambda _: ">"),
    ("&(?:quot|nbsp|mdash|ndash);", _dropped),
    (r"&#[0-9]+;", _same),
    # Abbreviations keep their dot.
    (rf"(?:(?i:{_TITLES})|{_STATES})\.|(?i:ca|nos?|op|pp|art|figs?|prop)\.(?= ?[0-9])", _same),
    (rf"[A-Za-z](?:\.[A-Za-z])+\.|[Pp][Hh]\.[Dd]\.|{_W}+\.(?=[,;:])", _same),
    (rf"[A-Za-z]\.(?!\s*$|\s+(?:(?:{_STARTERS})\s|<[/A-Za-z]))", _same),
    # Numbers, fractions and telephone numbers.
    (r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)", _same),
    (rf"(?:[vV]?\d+(?:\.\d+)*|\d{_W}*)\.[xX](?![A-Za-z0-9])", _same),
    (r"(?:\d{1,4}[- ])?\d{1,4}[/\u2044]\d{1,4}", _unbroken),
    (r"(?:\(\d{2,3}\) ?|(?:\+\+?)?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}", _telephone),
    # Words and compounds.
    (rf"{_W}+(?:_{_W}+)*", _same),
    (rf"{_W}(?:{_W}|[.,]){{0,60}}(?:[-\u2010\u2011](?:{_W}+|[A-Za-z](?:\.[A-Za-z])+\.))+", _same),
    (rf"{_A}+(?:-[A-Za-z]+){{0,2}}(?:\\?/{_A}+(?:-[A-Za-z]+){{0,2}}){{1,2}}", _same),
    (rf"(?!\d){_W}+(?:[.!?](?!\d){_W}+)+", _same),
    (r"[A-Z]+(?:(?:&amp;|[&+])[A-Z]+)+", lambda text: text.replace("&amp;", "&")),
    (r"[cC]\+\+|[cCfF]#|(?:[A-Z]|AU|CA|HK|NZ|US)\$", _same),
    # Faces, then punctuation.
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])|\(?[-^x=~<>']_[-^x=~<>']\)?", _round),
    (r"[?!]{2,}|\\?\*+|@@|_+|#+|<<|>>", _same),
    (r"-{2,}|''|\.{3}", _dropped),
    (r"[\[\](){}]", _BRACKETS.__getitem__),
    ("[\u00a2\u00a3\u00a4\u20a0\u20ac\x80]", _CURRENCY.__getitem__),
    ("[\u00bc-\u00be\u2153\u2154]", _FRACTIONS.__getitem__),
    (
        r"[$%&+/<=>@\\^|~\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u2016-\u2017\u201a"
        r"\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100-\u214f"
        r"\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]",
        _same,
    ),
]
_COMPILED = [(re.compile(pattern), action) for pattern, action in _RULES]
# Most words need no rule: letters between spaces that no rule would split or join.
_PLAIN = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme) )[A-Za-z]+(?= )")


def one_line(text: str) -> str:
    r"""Return `text` with every white-space character, line separators of all kinds included, as one space.

    A `\r`, U+2028, U+0085, `\v` or `\f` in a caption makes coco-caption shift all later captions to other images.
    """
    return re.sub(r"\s", " ", text)


MAX_CHARACTERS = 10_000
"""Characters of a caption that are scored. A character takes up to 30 microseconds; answers of 1,000 tokens are half as
long."""


def count_cut(texts: Iterable[str]) -> int:
    """Return how many texts are longer than what is scored of one."""
    return sum(len(text) > MAX_CHARACTERS for text in texts)


def tokenize(text: str) -> list[str]:
    """Split a caption into coco-caption's lower-cased tokens, punctuation dropped.

    What is behind the first :data:`MAX_CHARACTERS` is left out. A token may hold a no-break space (`22 3/4` is one).
    """
    text = one_line(text[:MAX_CHARACTERS]).replace("\u00ad", "").replace("&apos;", "'") + " "
    tokens = []
    position = 0
    while position < len(text):
        plain = _PLAIN.match(text, position)
        position, token = (plain.end() + 1, plain[0]) if plain else _scan(text, position)
        if token:
            tokens.append(token.lower())
    return tokens


def _scan(text: str, position: int) -> tuple[int, str]:
    """Return where the token at `position` ends, and the token; empty where nothing is scored."""
    longest, end, token = 0, position + 1, ""
    for pattern, action in _COMPILED:
        match = pattern.match(text, position)
        if match and match.end() - position > longest:
            longest = match.end() - position
            group = 1 if pattern.groups else 0
            end, token = match.end(group), action(match[group])
    return end, token
