"""Programs: a model as two functions of tensors, prefill and step, that run where hybridlm is not installed.

interface.py       names, dtypes and shapes of what goes in and comes out
flow.py            the two functions
trace.py           their graphs, for every batch, length and capacity
real.py            graphs without complex numbers, for ONNX
torch_export.py    graphs as files of torch.export
onnx_export.py     graphs as files of ONNX
agreement.py       what was written, beside the model
describe.py        what both forms have in common
"""

from hybridlm.export.program.onnx_export import write_onnx
from hybridlm.export.program.torch_export import write_torch_export

__all__ = ["write_onnx", "write_torch_export"]
