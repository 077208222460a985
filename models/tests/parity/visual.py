#!/usr/bin/env python3
"""Makes the vectors that our vision transformers are compared with: timm's and transformers' own.

    python3 models/tests/parity/visual.py                 # in an environment with torch, timm, transformers
    python3 models/tests/parity/visual.py --full DIR      # the published sizes, 22 to 86 million weights each

`visual/CASE.safetensors` holds weights at random in the library's own layout, as its own `save` writes
them; `visual/CASE.vectors.safetensors` holds pictures (`pixels`, [batch, 3, size, size], prepared) and
what the library makes of them (`features`), its metadata what the file does not say (`num_heads`).
`visual/preprocess.safetensors` holds pictures of awkward sizes (`picture:N`, [height, width, 3]), and each
library's preparation of them (`CASE:N`, [3, size, size]).
"""

import argparse
import pathlib
import shutil
import tempfile

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

HERE = pathlib.Path(__file__).resolve().parent / "visual"
SMALL = {"dim": 16, "depth": 2, "heads": 2, "patch": 7, "size": 28}


def timm_model(shape, **options):
    return VisionTransformer(
        img_size=shape["size"],
        patch_size=shape["patch"],
        embed_dim=shape["dim"],
        depth=shape["depth"],
        num_heads=shape["heads"],
        dynamic_img_size=True,
        num_classes=0,
        **options,
    )


def hf_config(kind, shape, **options):
    return kind(
        hidden_size=shape["dim"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        image_size=shape["size"],
        patch_size=shape["patch"],
        **options,
    )


def perceptron(shape):
    return {"intermediate_size": 4 * shape["dim"]}


def clip(shape):
    return CLIPVisionModelWithProjection(hf_config(CLIPVisionConfig, shape, projection_dim=24, **perceptron(shape)))


def siglip(shape):
    vision = hf_config(SiglipVisionConfigDict, shape, **perceptron(shape))
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=text))


def SiglipVisionConfigDict(**options):
    return options


def norm(**options):
    return lambda dim, **_: nn.LayerNorm(dim, **options)


# Name: the model of a shape, and its vector of prepared pictures.
CASES = {
    "timm": (lambda shape: timm_model(shape), "timm"),
    "timm-mean": (lambda shape: timm_model(shape, class_token=False, global_pool="avg", fc_norm=False), "timm"),
    "timm-dinov2": (lambda shape: timm_model(shape, init_values=1.0), "timm"),
    "timm-registers": (
        lambda shape: timm_model(shape, init_values=1.0, reg_tokens=4, no_embed_class=True),
        "timm",
    ),
    "timm-clip": (
        lambda shape: timm_model(shape, pre_norm=True, norm_layer=norm(eps=1e-5)),
        "timm",
    ),
    "timm-siglip": (lambda shape: timm_model(shape, class_token=False, global_pool="map"), "timm"),
    "clip": (clip, "image_embeds"),
    "siglip": (siglip, "siglip"),
    "dinov2": (lambda shape: Dinov2Model(hf_config(Dinov2Config, shape)), "pooler_output"),
    "dinov2-registers": (
        lambda shape: Dinov2WithRegistersModel(hf_config(Dinov2WithRegistersConfig, shape, num_register_tokens=4)),
        "pooler_output",
    ),
}


def features(model, how, pixels):
    if how == "timm":
        return model(pixels)
    vision = model.vision_model if how == "siglip" else model
    resized = pixels.shape[-1] != vision.config.image_size
    options = {} if "dinov2" in type(vision).__name__.lower() else {"interpolate_pos_encoding": resized}
    return vision(pixel_values=pixels, **options)["pooler_output" if how == "siglip" else how]


def scatter(model):
    """Weights that are neither zeros nor ones anywhere, and of a size that keeps numbers moderate."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=0.3 if parameter.dim() == 1 else fan_in**-0.5)
        if parameter.dim() == 1 and name.endswith(("weight", "gamma", "lambda1")):
            parameter.data += 1.0


def save(model, how, path):
    if how == "timm":
        save_file(model.state_dict(), path)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copy(pathlib.Path(folder) / "model.safetensors", path)


@torch.no_grad()
def make(name, shape, folder):
    build, how = CASES[name]
    model = build(shape).eval()
    scatter(model)
    save(model, how, folder / f"{name}.safetensors")
    vectors = {}
    # As trained, and with positions for more and for fewer patches.
    for size in (shape["size"], shape["size"] + 2 * shape["patch"], shape["size"] - shape["patch"]):
        pixels = torch.randn(2, 3, size, size)
        vectors[f"pixels:{size}"] = pixels
        vectors[f"features:{size}"] = features(model, how, pixels).contiguous()
    said = {"num_heads": str(shape["heads"])}
    save_file(vectors, folder / f"{name}.vectors.safetensors", metadata=said)
    print(name, "written")


def timm_transform(size, share, mean, std):
    return create_transform((3, size, size), interpolation="bicubic", mean=mean, std=std, crop_pct=share, crop_mode="center")


def hf(processor):
    return lambda picture: torch.from_numpy(numpy.asarray(processor(picture)["pixel_values"][0]))


def preprocessing():
    size = 28
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    square = {"height": size, "width": size}
    cases = {
        "timm": timm_transform(size, 0.9, (0.5,) * 3, (0.5,) * 3),
        "timm-dinov2": timm_transform(size, 1.0, **imagenet),
        "clip": hf(CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)),
        "siglip": hf(SiglipImageProcessorPil(size=square, resample=3)),
        "dinov2": hf(
            BitImageProcessorPil(
                size={"shortest_edge": 32}, crop_size=square, resample=3, image_mean=imagenet["mean"], image_std=imagenet["std"]
            )
        ),
    }
    tensors = {}
    generator = numpy.random.default_rng(1)
    for number, (width, height) in enumerate([(61, 45), (28, 28), (33, 90), (7, 19), (1, 1), (28, 41)]):
        # Smooth in large, rough in small, and with cells of full black and white.
        x, y = numpy.meshgrid(numpy.linspace(0, 3, width), numpy.linspace(0, 2, height))
        waves = numpy.stack([numpy.sin(x * k + y * (3 - k)) for k in (1, 2, 3)], -1) * 90 + 128
        noisy = waves + generator.normal(0, 60, waves.shape)
        pixels = noisy.clip(0, 255).astype(numpy.uint8)
        tensors[f"picture:{number}"] = torch.from_numpy(pixels.copy())
        for name, prepare in cases.items():
            tensors[f"{name}:{number}"] = prepare(Image.fromarray(pixels)).float().contiguous()
    save_file(tensors, HERE / "preprocess.safetensors")
    print("preprocessing written")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--full", type=pathlib.Path, help="folder for the published sizes")
    full = arguments.parse_args().full
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    if full is None:
        HERE.mkdir(exist_ok=True)
        for name in CASES:
            make(name, SMALL, HERE)
        preprocessing()
        return
    for size, dim, heads in (("s", 384, 6), ("b", 768, 12)):
        for patch in (14, 16):
            folder = full / f"{size}{patch}"
            folder.mkdir(parents=True, exist_ok=True)
            for name in CASES:
                make(name, {"dim": dim, "depth": 12, "heads": heads, "patch": patch, "size": 224}, folder)


if __name__ == "__main__":
    main()
