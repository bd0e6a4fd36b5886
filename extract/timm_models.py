"""The backbone kind "timm": the models of PyTorch Image Models, with the preprocessing of their data config."""

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import UserError, import_optional, unknown_name
from extract.preprocessing import Preprocessing
from extract.weights import load_weights


class TimmModels:
    """Models of timm by their names there, with a tag where weights are meant: vit_small_patch14_dinov2.lvd142m."""

    def build(self, name: str, image_size: int | None) -> nn.Module:
        timm = _timm()
        if not timm.is_model(name):
            raise unknown_name("model of timm", name, timm.list_models())
        try:
            own_size = self._config(name)["input_size"][-1]
        except RuntimeError as error:
            raise UserError(f'timm has no weights "{name}" ({error}): see timm.list_pretrained()') from error
        sized = {} if image_size in (None, own_size) else {"dynamic_img_size": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return timm.create_model(name, pretrained=False, num_classes=0, **sized)
            except TypeError:  # a convolutional network takes images of any size anyhow
                return timm.create_model(name, pretrained=False, num_classes=0)

    def pretrained(self, name: str, image_size: int | None) -> tuple[nn.Module, Path]:
        module = self.build(name, image_size)
        config = _timm().get_pretrained_cfg(name)
        source = f"https://huggingface.co/{config.hf_hub_id}" if config and config.hf_hub_id else "timm's model hub"
        try:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
        except Exception as error:  # of the network, of the hub, or of a model that has no weights
            reason = str(error).split("\n", 1)[0]
            raise UserError(
                f"the weights of {name} cannot be downloaded ({reason}): get model.safetensors from {source} by hand "
                "and give it with --weights"
            ) from error
        load_weights(module, name, path)
        return module, path

    def remove_classifier(self, module: nn.Module) -> str:
        return ""  # it was made without one

    def preprocessing(self, name: str, image_size: int | None) -> Preprocessing:
        config = self._config(name)
        _, height, width = config["input_size"]
        if height != width or config["interpolation"] not in ("bilinear", "bicubic"):
            raise UserError(
                f"{name} wants images of {height}×{width}, resized by {config['interpolation']}, which cannot be "
                "done here: choose a model with square images, resized bilinear or bicubic"
            )
        size = image_size or height
        squash = config["crop_mode"] == "squash"
        return Preprocessing(
            size,
            interpolation=f"{config['interpolation']}, antialiased",
            crop="squash" if squash else "centre",
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            resize=int(size / config["crop_pct"]),
        )

    def _config(self, name: str) -> dict[str, Any]:
        timm = _timm()
        config = timm.get_pretrained_cfg(name)
        return timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})


def _timm() -> Any:
    return import_optional("timm", "choose a model of torchvision")
