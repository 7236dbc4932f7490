"""Programs: a model as two functions of tensors, prefill and step, that run where hybridlm is not installed.

interface.py       names, dtypes and shapes of what goes in and comes out
flow.py            the two functions
trace.py           their graphs, for every batch, length and capacity
real.py            graphs without complex numbers, for ONNX
write.py           the folder, in either form; torch_export.py, onnx_export.py: the two forms
agreement.py       what was written, beside the model
describe.py        what can be a program, and the file that says what goes in and comes out
"""

from hybridlm.export.program.onnx_export import write_onnx
from hybridlm.export.program.torch_export import write_torch_export

__all__ = ["write_onnx", "write_torch_export"]
