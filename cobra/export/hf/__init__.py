"""The model as Hugging Face's transformers has models: configuration, model, processor, and a folder of them.

`configuration_cobra`, `modeling_cobra` and `processing_cobra`, and the modules of this package that they import, are
also the code inside an exported folder (:mod:`cobra.export.hf.remote_code`), for machines without this package.
"""
