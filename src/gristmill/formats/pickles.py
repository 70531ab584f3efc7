"""pytorch_model.bin: a dictionary of tensors as `torch.save` pickles it, read without running anything in it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.formats.gguf.values import shown


def read_bin(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors by name, on the CPU, in the file's dtypes and order.

    Mapped copy-on-write (files from before torch 1.6: read into memory). Tensors saved as sharing memory share
    it, and may be strided. Raises RequestError, one line with the file and the tensor: for a pickle that needs
    code to be loaded, which is named and not run; for a damaged file; for anything but a flat dictionary of
    dense tensors.
    """
    path = Path(path)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise RequestError(f"{path} {what}; give a .bin file")
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the age of the pickle
            contents = torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a pickle is a program: a damaged one may end in any way there is
        raise _refusal(path, error) from error
    return _checked(path, contents)


def _check_stored(path: Path) -> None:
    """torch stores its records as they are; a compressed one could swell to any size."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise RequestError(
                    f"{path}: its record {shown(record.filename)} is compressed, which torch.save "
                    "never does; save the weights again, as safetensors"
                )


def _refusal(path: Path, error: Exception) -> RequestError:
    code = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and code:
        return RequestError(
            f"{path} needs code to be loaded ({shown(code[1])}), which is not run: it holds more than tensors; "
            "save its state_dict() as safetensors"
        )
    return RequestError(
        f"{path} is damaged, incomplete or no file of torch.save ({type(error).__name__}); "
        "download it again"
    )


def _checked(path: Path, contents: object) -> dict[str, Tensor]:
    if not isinstance(contents, dict):
        raise RequestError(
            f"{path} holds a {type(contents).__name__}, not a dictionary of tensors; "
            "save a state_dict() as safetensors"
        )
    size = path.stat().st_size
    tensors: dict[str, Tensor] = {}
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RequestError(
                f"{path}: its entry {shown(str(name))} is a {type(value).__name__}, not a tensor with a name; "
                "save a flat state_dict() as safetensors"
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise RequestError(
                f"{path}: the tensor {shown(name)} is not dense numbers; save it as such"
            )
        if value.nbytes > size:  # strides of 0: a few bytes shown as any number of elements
            raise RequestError(
                f"{path}: the tensor {shown(name)} of shape {list(value.shape)} is larger than its file"
            )
        tensors[name] = value.detach()
    return tensors
