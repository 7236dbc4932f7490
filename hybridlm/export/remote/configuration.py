"""The config of an exported model. `spec` is what hybridlm builds the same model from; `kinds` says it layer by layer.

This file needs nothing of hybridlm.
"""

from typing import ClassVar

from transformers import PreTrainedConfig


class HybridLMConfig(PreTrainedConfig):
    """A stack of layers, each of a kind.

    vocab_size:       number of token ids.
    d_model:          width of the residual stream; hidden_size is another name for it.
    kinds:            {name: {mixers, mlp, combine, label, norms, input, output, low_rank}}, every number settled.
    layers:           the kind of each layer, from the bottom up.
    norm, norm_eps:   rmsnorm or layernorm, everywhere; and its epsilon.
    dropout:          probability, on the embedding and on everything added to the residual stream.
    residual_in_fp32: keep the residual stream in float32 whatever the parameters' dtype.
    spec, format:     the same for hybridlm: `hybridlm.load` reads it.
    """

    model_type = "hybridlm"
    attribute_map: ClassVar = {"hidden_size": "d_model"}
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    def __init__(
        self,
        vocab_size=256,
        d_model=64,
        kinds=None,
        layers=None,
        norm="rmsnorm",
        norm_eps=1e-5,
        dropout=0.0,
        residual_in_fp32=False,
        use_cache=True,
        tie_word_embeddings=False,
        spec=None,
        format=1,
        **others,
    ):
        self.vocab_size, self.d_model = vocab_size, d_model
        self.kinds, self.layers = kinds or {}, layers or []
        self.num_hidden_layers = len(self.layers)
        self.norm, self.norm_eps = norm, norm_eps
        self.dropout, self.residual_in_fp32 = dropout, residual_in_fp32
        self.use_cache = use_cache
        self.spec, self.format = spec or {}, format
        others.pop("num_hidden_layers", None)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)
