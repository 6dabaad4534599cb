"""The weights of a trained run under the names of its model: stored, frozen at an origin, or with an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor, nn

from lit_mm.assets import NANO_WEIGHTS
from lit_mm.checkpoints.digests import digest
from lit_mm.checkpoints.origins import is_published
from lit_mm.checkpoints.reading import Checkpoint, adapters_in
from lit_mm.errors import UserError
from lit_mm.layers.adapters import NAME
from lit_mm.module import MultimodalModule
from lit_mm.stages.adapter import Adapter, adapter_part
from lit_mm.weights.convert import AdaptsState
from lit_mm.weights.files import TensorFiles, tensor_files
from lit_mm.weights.provenance import Traced, plan
from lit_mm.weights.source import MAPS, local_place, places_of

BASE = "base_layer"  # name of the wrapped linear in peft


class RunWeights:
    """Reads the weights of a checkpoint tensor by tensor.

    A part that the checkpoint does not store is read from its origin, and must have the recorded digests. The branches
    of an adapter that a stage has put on a part are added to the weights of the part.

    Args:
        checkpoint: checkpoint of the run.
        module: model of the run's recipe, on the meta device, without the adapters of stages.
        averaged: True reads the moving averages of the weights that have one.
    Raises:
        UserError: `averaged` is set and the checkpoint has no averages.
    """

    def __init__(self, checkpoint: Checkpoint, module: MultimodalModule, *, averaged: bool = False) -> None:
        if averaged and not any(checkpoint.average(name) is not None for name in checkpoint.manifest["weights"]):
            raise UserError(
                f"{str(checkpoint.path)!r} has no averages of weights, because its stage averages no part. Leave "
                "--averaged out, or choose the end of a stage with `average` in its `train`"
            )
        self.checkpoint, self.module, self.averaged = checkpoint, module, averaged
        self.adapters = adapters_in(checkpoint.manifest)
        self._stored: Mapping[str, object] = checkpoint.manifest["weights"]
        frozen = checkpoint.manifest["frozen"]
        self._part_of = {name: part for part, entry in frozen.items() for name in entry["digests"]}
        self._origins: dict[str, Origin] = {}  # path of a part with published weights -> its weights

    @cached_property
    def adapter_of(self) -> dict[str, Adapter]:
        """Adapter of every weight that has one, by the name of the weight in the model."""
        adapters: dict[str, Adapter] = {}
        for part, adapter in self.adapters.items():
            for name in self.checkpoint.manifest["parts"].get(adapter_part(part), ()):
                adapters[f"{name.partition('.lora_')[0]}.weight"] = adapter
        return adapters

    def is_frozen(self, name: str) -> bool:
        """Return True for a tensor that is published and that the run has never trained."""
        return self._key(name) in self._part_of

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._stored or self.is_frozen(name)

    def weight(self, name: str, *, merge: bool = True) -> Tensor:
        """Read a tensor by its name in the model.

        Args:
            merge: True adds the branches of the adapter that a stage has put on it.
        Raises:
            UserError: the origin of a frozen part has changed.
        """
        key = self._key(name)
        value = self._read(key) if key in self._stored else self._frozen(key, name)
        adapter = self.adapter_of.get(name)
        return value if adapter is None or not merge else merged(value, self.branches(name), adapter)

    def branches(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of the adapter on a weight, by their names in peft, such as `lora_A.default.weight`."""
        owner = f"{name.removesuffix('.weight')}."
        names = (other for other in self._stored if other.startswith(f"{owner}lora_"))
        return {other.removeprefix(owner): self._read(other) for other in names}

    def _read(self, key: str) -> Tensor:
        """Read a tensor that the checkpoint stores, or its average."""
        average = self.checkpoint.average(key) if self.averaged else None
        return self.checkpoint.weight(key) if average is None else average

    def _key(self, name: str) -> str:
        """Return the name of a tensor in the checkpoint."""
        owner, _, kind = name.rpartition(".")
        wrapped = f"{owner}.{BASE}.{kind}"
        return wrapped if wrapped in self._stored or wrapped in self._part_of else name

    def _frozen(self, key: str, name: str) -> Tensor:
        """Read a tensor from the origin of its part."""
        part = self._part_of[key]
        entry = self.checkpoint.manifest["frozen"][part]
        path = next(
            path
            for path, module in self.module.named_modules()
            if name.startswith(f"{path}.") and is_published(module) and module.weights == entry["origin"]
        )
        if path not in self._origins:
            self._origins[path] = Origin(entry["origin"], self.module.get_submodule(path))
        value = self._origins[path].weight(name.removeprefix(f"{path}."))
        recorded = entry["digests"][key]
        if recorded and digest(value) != recorded:
            raise UserError(
                f"{str(self.checkpoint.path)!r} was trained on the frozen part {part!r} of {entry['origin']!r}, "
                f"which has changed: {name!r} differs. Restore the original"
            )
        return value


class Origin:
    """The published weights of one part, read tensor by tensor.

    Args:
        reference: reference of the weights, see `lit_mm.weights.source.load_part`.
        module: part on the meta device.
    """

    def __init__(self, reference: str, module: nn.Module) -> None:
        self.reference = reference
        kind, _, place = reference.partition(":")
        self._files: dict[str, TensorFiles] = {}  # name of a tensor -> the files that hold it
        for folder in [NANO_WEIGHTS / f"{place}.safetensors"] if kind == "nano" else map(local_place, places_of(place)):
            files = TensorFiles(tensor_files(folder))
            self._files = dict.fromkeys(files, files) | self._files

        def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
            mapped = dict(state if kind == "nano" else MAPS[kind](state, module))
            if isinstance(module, AdaptsState):
                module.adapt_state(mapped, "")
            # A key map may fill gaps with the start values of the part, which has none here
            return {name: of for name, of in mapped.items() if isinstance(of, Traced) or not of.is_meta}

        self._plan = plan({name: files.stored[name] for name, files in self._files.items()}, rename)
        self._group_of = {name: group for group in self._plan.groups for name in group.targets}
        self._dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
        self._waiting: dict[str, Tensor] = {}

    def weight(self, name: str) -> Tensor:
        """Read a tensor by its name in the part, in the dtype of the part.

        Raises:
            UserError: the files have none.
        """
        plain = name.replace(f".{BASE}.", ".").replace(".base.", ".")  # as `load_part` takes them
        if plain not in self._waiting and plain not in self._group_of:
            raise UserError(f"{self.reference!r} has no tensor for {name!r}. Name the files of this part")
        if plain not in self._waiting:
            self._waiting = self._plan.compute(self._group_of[plain], self._read)
        return self._waiting.pop(plain).to(self._dtypes[name])

    def _read(self, name: str) -> Tensor:
        return self._files[name][name]


def merged(weight: Tensor, branches: dict[str, Tensor], adapter: Adapter) -> Tensor:
    """Add the branches of an adapter to a weight, as peft does.

    Args:
        weight: [out, in] weight of the wrapped linear.
        branches: tensors of the adapter by their names in peft.
        adapter: settings of the adapter.
    """
    from peft.tuners.lora import Linear, LoraConfig

    base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    base.weight.data = weight
    config = LoraConfig(use_rslora=adapter.type == "rslora", use_dora=adapter.type == "dora")
    alpha = adapter.rank if adapter.alpha is None else adapter.alpha
    layer = Linear(base, NAME, config, r=adapter.rank, lora_alpha=alpha)
    layer.load_state_dict(branches | {f"{BASE}.weight": weight})
    layer.merge()
    return layer.get_base_layer().weight.data
