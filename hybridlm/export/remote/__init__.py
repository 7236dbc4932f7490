"""A model as one Python file beside its weights, which transformers runs with `trust_remote_code=True`.

The file is generated from our own layers: what this model uses of them, with every op's reference code, is copied out
of our modules into one that needs torch and transformers, and nothing of hybridlm.

    write.py                    the folder
    bundle.py                   the file; reach.py: what is needed; trim.py: what is cut out; source.py and
                                scopes.py: what names mean
    modeling.py, cache.py, configuration.py, parts.py, table.py, plain.py, reshape.py
                                stand in exports beside our layers

The folder is one of our own format as well: `hybridlm.load` reads it.
"""
