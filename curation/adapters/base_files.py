"""Read what the files of a local base model say of its modules, without loading them."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedwinnow.curation.errors import ModelError

Shape = tuple[int, int]
_WEIGHT = ".weight"
_MATRIX = 2


def base_shapes(folder: Path) -> dict[str, Shape]:
    """Return module → shape of its weight, from the headers of a model's files.

    Empty where the folder holds no ``*.safetensors``.

    Raises:
        ModelError: a file is damaged.
    """
    found: dict[str, Shape] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - no mapping
                    shape = tuple(opened.get_slice(key).get_shape())
                    if key.endswith(_WEIGHT) and len(shape) == _MATRIX:
                        found[key.removesuffix(_WEIGHT)] = (shape[0], shape[1])
        except (OSError, SafetensorError) as error:
            message = f"{path}: expected the weights of the base model ({error})"
            raise ModelError(message) from error
    return found
