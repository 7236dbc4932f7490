"""Small studies that run in seconds."""

from hybridlm.ablate.study import Study

BLOCKS = {
    "M": {"mixer": {"type": "mamba2", "d_state": 8, "head_dim": 16}, "mlp": "none"},
    "A": {"mixer": {"type": "attention"}, "mlp": "none"},
}
TASK = {"vocab_size": 32, "length": 16, "pairs": 2}


def small_study(arms=None, *, steps=12, lr=(1e-3, 4e-3), seeds=2, data=None, dropout=0.0, tests=None, **train):
    """Two arms of width 32 on MQAR, at two learning rates and two seeds."""
    task = {"task": "mqar", "params": TASK}
    long = {**task, "params": {**TASK, "length": 32}, "name": "long", "held_out": 16}
    arms = arms or {"hybrid": {}, "pure": {"pattern": "MM"}}
    return Study.from_dict(
        {
            "name": "small",
            "question": "Does it run?",
            "baseline": {"d_model": 32, "vocab_size": 32, "pattern": "MA", "blocks": BLOCKS, "dropout": dropout},
            "arms": arms,
            "data": {**task, "held_out": 24, **(data or {})},
            "eval": [long] if tests is None else tests,
            "train": {"steps": steps, "batch_size": 4, "warmup": 2, "eval_every": 4, **train},
            "lr": list(lr),
            "seeds": seeds,
            "allow": ["few_lrs"],
        }
    )
