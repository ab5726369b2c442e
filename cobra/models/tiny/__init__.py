"""The packaged files of `cobra-tiny`: its tokenizer and the baseline's weights, made by `make tiny`.

`tokenizer.json` and `tokenizer_config.json` come from :mod:`cobra.demo.tokenizer`, `model.safetensors` from
:mod:`cobra.demo.tiny`, which trains on plain captions of rendered scenes.
"""
