"""What stands around a network's layers, by family: the loss that it is trained with, and the decoding of its outputs.

Detectors of torchvision, of Ultralytics and of transformers return losses while they train and lists of boxes while
they are used. What is cut, trained and exported is their raw form: tensors in, tensors out, the same in both modes.
"""

from deploy_prune.families.raw_form import Decode as Decode
from deploy_prune.families.raw_form import Prediction as Prediction
from deploy_prune.families.raw_form import RawForm as RawForm
from deploy_prune.families.table import raw_form as raw_form
