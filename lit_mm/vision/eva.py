"""The EVA-CLIP vision transformer (ViT-g): pre-norm blocks, a class token, biases on queries and values only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_mm.errors import UserError
from lit_mm.layers.activations import Checkpointing, prepare_layers
from lit_mm.layers.attention import attention
from lit_mm.tiling.grids import PatchGrid
from lit_mm.vision.position import resize_position_table
from lit_mm.vision.protocol import VisionEncoder

# V views, N patches, D width, P = N + 1 positions (class token first), H heads


class EvaBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block with stochastic depth, which skips a branch for whole views."""

    def __init__(self, width: int, heads: int, ffn_width: int, drop_path: float, eps: float) -> None:
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[V, P, D] -> [V, P, D]."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])  # softmax cancels a bias of keys
        qkv = self.qkv(self.norm1(x)) + bias
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [V, H, P, D / H]
        x = x + self._dropped(self.out(attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self._dropped(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Apply stochastic depth. A frozen block drops nothing, so its features are the same each time."""
        if not (self.training and self.drop_path and self.fc1.weight.requires_grad):
            return branch
        mask = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * mask / (1 - self.drop_path)


class EvaViT(nn.Module, VisionEncoder):
    """The EVA-CLIP ViT-g/14. Its features are the output of its last block, class token first, before any norm.

    As in the release, the fortieth block, the last norm and the head are not built. Families apply a norm to the
    features (`ln_vision`), which belongs to their connector.

    Args:
        image_size: side of a view, pixels. The position table has one row per patch of such a view.
        patch: side of a patch, pixels.
        width: D.
        layers: number of blocks. Published: 39 of 40.
        heads: number of attention heads. Published: 16.
        mlp_ratio: feed-forward width / D; the product is rounded down, 6144 for ViT-g.
        drop_path: probability that a branch of the last block is skipped for a view while the encoder learns. The
            probability rises linearly from 0 at the first block. The release builds 0.4.
        drop_cls: True leaves the class token out of the output.
        eps: epsilon of the layer norms.
        position_size: image size of the checkpoint, pixels. Its position table is resized bicubically while it is
            loaded. None: the checkpoint must have the table of `image_size`.
        weights: reference of the checkpoint that `load_pretrained` loads later; the constructor reads nothing.
        activation_checkpointing: what each block keeps for the backward pass: "none" its activations, "full" its
            inputs, "selective" (with `compile`) its inputs and its products.
        compile: compile the blocks by `torch.compile` while they train.
    Raises:
        UserError: sizes do not divide, or a rate lies outside [0, 1).
    Source: arXiv:2303.15389; modeling_vit.py of the XComposer release, eva_vit.py of github.com/salesforce/LAVIS.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch: int = 14,
        width: int = 1408,
        layers: int = 39,
        heads: int = 16,
        mlp_ratio: float = 4.3637,
        drop_path: float = 0.0,
        drop_cls: bool = False,
        eps: float = 1e-6,
        position_size: int | None = None,
        weights: str | None = None,
        activation_checkpointing: Checkpointing = "none",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"EvaViT: `heads` must divide `width`, got {width=}, {heads=}")
        if layers < 1 or not 0 <= drop_path < 1:
            raise UserError(f"EvaViT: at least 1 layer and a `drop_path` in [0, 1), got {layers=}, {drop_path=}")
        self.image_size, self.patch, self.width, self.num_layers = image_size, patch, width, layers
        self.drop_cls, self.position_size, self.weights = drop_cls, position_size, weights
        self.returns_class_token = not drop_cls
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        self.patch_grid = PatchGrid(patch, "EvaViT")
        self.grid = self.token_grid((image_size, image_size))
        if position_size is not None:
            self.token_grid((position_size, position_size))  # it must divide, too
        self.patches = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + self.grid[0] * self.grid[1], width))
        rates = [drop_path * number / max(1, layers - 1) for number in range(layers)]
        self.blocks = nn.ModuleList(EvaBlock(width, heads, int(width * mlp_ratio), rate, eps) for rate in rates)
        prepare_layers(self, activation_checkpointing, compile)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights by the release's scheme: N(0, 0.02); linears that add to the residual narrow with depth."""
        for table in (self.cls, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        for number, block in enumerate(self.blocks, start=1):
            for linear in (block.qkv, block.out, block.fc1, block.fc2):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            with torch.no_grad():
                for linear in (block.out, block.fc2):
                    linear.weight.div_((2.0 * number) ** 0.5)

    def token_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of a view, pixels -> (rows, columns) of patches; the class token is not among them.

        Raises:
            UserError: a side is not a positive multiple of the patch.
        """
        return self.patch_grid(size)

    def layer_of(self, parameter_name: str) -> int:
        """Depth of a parameter, for layer-wise learning rates: 0 = embeddings, i + 1 = block i."""
        head, _, rest = parameter_name.partition(".")
        return int(rest.split(".", 1)[0]) + 1 if head == "blocks" else 0

    def adapt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Fit a checkpoint to this encoder, in place; `load_strict` calls it.

        The block behind the features is dropped, and the position table of a checkpoint of `position_size` is resized.
        """
        unused = f"{prefix}blocks.{self.num_layers}."  # EVA's own checkpoint has one block more
        for name in [name for name in state if name.startswith(unused)]:
            del state[name]
        name, size = f"{prefix}positions", self.position_size
        if size is None or name not in state:
            return
        rows, columns = self.token_grid((size, size))
        if len(state[name]) == 1 + rows * columns:
            state[name] = resize_position_table(state[name], self.grid)

    def forward(self, pixels: Tensor) -> Tensor:
        """[V, 3, H, W] normalised pixels -> [V, 1 + N, D], class token first ([V, N, D] with `drop_cls: true`).

        Raises:
            UserError: the views have another size than `image_size`.
        """
        if self.token_grid(tuple(pixels.shape[-2:])) != self.grid:
            raise UserError(
                f"EvaViT: built for views of {self.image_size} x {self.image_size} pixels, got {pixels.shape[-2]} x "
                f"{pixels.shape[-1]}. Set `image_size` of the vision encoder to the size that the tiling makes."
            )
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # [V, N, D]
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + self.positions  # [V, P, D]
        for block in self.blocks:
            x = block(x)
        return x[:, 1:] if self.drop_cls else x
