"""Networks that judge pictures: architecture against independent code, real weights on real photographs, names."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
)

from ddscale.metrics.features import load_extractor
from ddscale.metrics.images import as_float, from_pil
from ddscale.metrics.inception import InceptionV3, resize_as_tensorflow_1
from ddscale.metrics.vit import VisionTransformer, current_names
from ddscale.metrics.weights import MissingWeights, load_strictly


def photograph(name, size):
    """The middle square of one of scikit-image's photographs, (1, 3, size, size) uint8."""
    picture = Image.fromarray(getattr(skimage.data, name)())
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return from_pil([picture.crop((left, top, left + side, top + side)).resize((size, size), 3)])


@pytest.fixture(scope="module")
def inception():
    """FID's network with random weights of a size that keeps signals alive through its depth."""
    torch.manual_seed(0)
    network = InceptionV3().eval()
    for name, values in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(values)
        elif name.endswith(("running_var", "bn.weight")):
            values.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bn.bias")):
            values.normal_(0, 0.1)
    return network


def test_inception_has_the_names_and_shapes_of_the_published_file(inception):
    """Some of pt_inception-2015-12-05-6726825d.pth, and the number of its parameters (torchvision's plus 8 classes)."""
    shapes = {name: tuple(values.shape) for name, values in inception.state_dict().items()}
    expected = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.bn.bias": (192,),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert expected.items() <= shapes.items()
    assert len({name.split(".")[0] for name in shapes}) == 5 + 11 + 1
    # 94 convolutions with 5 arrays and a counter each, and the classifier's two.
    assert len(shapes) == 94 * 6 + 2
    assert sum(p.numel() for p in inception.parameters()) == 23_834_568 + 8 * 2049


def written_out_inception(state, x):
    """The forward pass as pytorch-fid's and torch-fidelity's networks do it, block by block, from the named arrays."""

    def conv(x, name, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, eps=0.001))

    def mean_pool(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def a(x, m):
        five = conv(conv(x, f"{m}.branch5x5_1"), f"{m}.branch5x5_2", padding=2)
        three = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        three = conv(three, f"{m}.branch3x3dbl_3", padding=1)
        return torch.cat([conv(x, f"{m}.branch1x1"), five, three, conv(mean_pool(x), f"{m}.branch_pool")], 1)

    def b(x, m):
        double = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        double = conv(double, f"{m}.branch3x3dbl_3", stride=2)
        return torch.cat([conv(x, f"{m}.branch3x3", stride=2), double, F.max_pool2d(x, 3, 2)], 1)

    def c(x, m):
        seven = conv(conv(x, f"{m}.branch7x7_1"), f"{m}.branch7x7_2", padding=(0, 3))
        seven = conv(seven, f"{m}.branch7x7_3", padding=(3, 0))
        double = conv(conv(x, f"{m}.branch7x7dbl_1"), f"{m}.branch7x7dbl_2", padding=(3, 0))
        double = conv(double, f"{m}.branch7x7dbl_3", padding=(0, 3))
        double = conv(double, f"{m}.branch7x7dbl_4", padding=(3, 0))
        double = conv(double, f"{m}.branch7x7dbl_5", padding=(0, 3))
        return torch.cat(
            [conv(x, f"{m}.branch1x1"), seven, double, conv(mean_pool(x), f"{m}.branch_pool")], 1
        )

    def d(x, m):
        three = conv(conv(x, f"{m}.branch3x3_1"), f"{m}.branch3x3_2", stride=2)
        seven = conv(conv(x, f"{m}.branch7x7x3_1"), f"{m}.branch7x7x3_2", padding=(0, 3))
        seven = conv(conv(seven, f"{m}.branch7x7x3_3", padding=(3, 0)), f"{m}.branch7x7x3_4", stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(x, m, pooled):
        three = conv(x, f"{m}.branch3x3_1")
        three = [
            conv(three, f"{m}.branch3x3_2a", padding=(0, 1)),
            conv(three, f"{m}.branch3x3_2b", padding=(1, 0)),
        ]
        double = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", padding=1)
        double = [
            conv(double, f"{m}.branch3x3dbl_3a", padding=(0, 1)),
            conv(double, f"{m}.branch3x3dbl_3b", padding=(1, 0)),
        ]
        return torch.cat([conv(x, f"{m}.branch1x1"), *three, *double, conv(pooled, f"{m}.branch_pool")], 1)

    x = conv(x, "Conv2d_1a_3x3", stride=2)
    x = conv(conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = conv(conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = F.max_pool2d(x, 3, 2)
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = a(x, m)
    x = b(x, "Mixed_6a")
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = c(x, m)
    x = d(x, "Mixed_7a")
    x = e(x, "Mixed_7b", mean_pool(x))
    x = e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
    pool = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return pool, pool @ state["fc.weight"].T


@torch.inference_mode()
def test_inception_computes_what_the_written_out_network_does(inception):
    pictures = torch.from_numpy(np.concatenate([photograph("astronaut", 299), photograph("coffee", 299)]))
    out = inception(as_float(pictures))
    pool, logits = written_out_inception(inception.state_dict(), (pictures.float() - 128) / 128)
    assert out["pool"].shape == (2, 2048)
    assert out["logits"].shape == (2, 1008)
    assert pool.std() > 0.01
    torch.testing.assert_close(out["pool"], pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["logits"], logits, rtol=1e-4, atol=1e-4)


def test_resize_as_tensorflow_1():
    """Positions i · scale: every second pixel of a picture halved, and the last one held at the far edge."""
    x = torch.rand(1, 3, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(resize_as_tensorflow_1(x[:, :, :6], 3), x[:, :, 0:6:2, ::2])
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    torch.testing.assert_close(resize_as_tensorflow_1(ramp, 4)[0, 0, 0], torch.tensor([0.0, 0.5, 1.0, 1.0]))


def test_inception_weights_of_other_origin_are_not_called_inception(inception, tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    state = {name: values for name, values in inception.state_dict().items() if "num_batches" not in name}
    torch.save(state, path)
    extractor = load_extractor("inception_v3", tmp_path)
    assert extractor.name == f"inception_v3_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    layers = extractor(photograph("chelsea", 64))
    assert {name: tuple(values.shape) for name, values in layers.items()} == {
        "pool": (1, 2048),
        "logits": (1, 1008),
    }
    del state["Mixed_7c.branch1x1.conv.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lacks Mixed_7c\.branch1x1\.conv\.weight"):
        load_extractor("inception_v3", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="download it again"):
        load_extractor("inception_v3", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("inception_v3", "pt_inception-2015-12-05-6726825d.pth"),
        ("alexnet", "alexnet.ckpt"),
        ("efficientnet_lite0", "efficientnet-lite0-57934424.pth"),
        ("clip", "clip-vit-large-patch14"),
        ("vit_h_14", "vit_h_14_swag-80465313.pth"),
    ],
)
def test_missing_weights_are_named_with_place_and_source(name, file, tmp_path, monkeypatch):
    monkeypatch.setenv("DDSCALE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights) as error:
        load_extractor(name)
    for part in (name, file, str(tmp_path), "DDSCALE_WEIGHTS", "Source: "):
        assert part in str(error.value)


def test_efficientnet_sees_what_the_photographs_show(weights):
    """Classes and logits as efficientnet-lite-pytorch 0.1.0 gives for the same pixels."""
    extractor = load_extractor("efficientnet_lite0", weights)
    assert extractor.name == "efficientnet_lite0"
    layers = extractor(np.concatenate([photograph("chelsea", 224), photograph("coffee", 224)]))
    assert layers["pool"].shape == (2, 1280)
    top = layers["logits"].argmax(dim=1).tolist()
    assert top == [285, 967]  # Egyptian cat, espresso
    np.testing.assert_allclose(layers["logits"].max(dim=1).values, [9.01185, 10.98411], rtol=1e-4)


def test_alexnet_layers(weights):
    extractor = load_extractor("alexnet", weights)
    assert extractor.name == "alexnet"
    layers = extractor(photograph("chelsea", 256))
    assert layers["relu2"].shape == (1, 192 * 31 * 31)
    assert layers["relu5"].shape == (1, 256 * 15 * 15)
    assert (layers["relu2"] >= 0).all()
    assert (layers["relu2"] > 0).float().mean() > 0.1
    # Real weights: two views of the cat are more alike than the cat and a cup.
    near, far = (extractor(photograph(name, 200))["relu5"] for name in ("chelsea", "coffee"))
    assert (
        torch.cosine_similarity(layers["relu5"], near) > torch.cosine_similarity(layers["relu5"], far) + 0.2
    )


@torch.inference_mode()
def test_vision_transformer_against_transformers():
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=42,
        patch_size=14,
        num_labels=10,
        layer_norm_eps=1e-6,
    )
    theirs = ViTForImageClassification(config).eval()
    for parameter in theirs.parameters():
        parameter.normal_(0, 0.2)
    source = theirs.state_dict()
    state = {
        "class_token": source["vit.embeddings.cls_token"],
        "encoder.pos_embedding": source["vit.embeddings.position_embeddings"],
        "encoder.ln.weight": source["vit.layernorm.weight"],
        "encoder.ln.bias": source["vit.layernorm.bias"],
    }
    for part in ("weight", "bias"):
        state[f"conv_proj.{part}"] = source[f"vit.embeddings.patch_embeddings.projection.{part}"]
        state[f"heads.head.{part}"] = source[f"classifier.{part}"]
        for i in range(3):
            old, new = f"vit.layers.{i}", f"encoder.layers.encoder_layer_{i}"
            fused = [source[f"{old}.attention.{x}_proj.{part}"] for x in "qkv"]
            state[f"{new}.self_attention.in_proj_{part}"] = torch.cat(fused)
            state[f"{new}.self_attention.out_proj.{part}"] = source[f"{old}.attention.o_proj.{part}"]
            state[f"{new}.ln_1.{part}"] = source[f"{old}.layernorm_before.{part}"]
            state[f"{new}.ln_2.{part}"] = source[f"{old}.layernorm_after.{part}"]
            # Torchvision's published files carry the older names of these two.
            state[f"{new}.mlp.linear_1.{part}"] = source[f"{old}.mlp.fc1.{part}"]
            state[f"{new}.mlp.linear_2.{part}"] = source[f"{old}.mlp.fc2.{part}"]
    ours = VisionTransformer(size=42, patch=14, width=48, depth=3, heads=4, mlp_width=96, classes=10).eval()
    load_strictly(ours, current_names(state), "file")
    pictures = torch.rand(2, 3, 42, 42)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    standardised = (pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(ours(pictures)["logits"], theirs(standardised).logits, rtol=1e-4, atol=1e-4)


def test_vit_h_14_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = VisionTransformer()
    assert sum(p.numel() for p in network.parameters()) == 633_470_440


@torch.inference_mode()
def test_clip_against_transformers(tmp_path):
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        projection_dim=24,
    )
    folder = tmp_path / "clip-vit-large-patch14"
    theirs = CLIPVisionModelWithProjection(config).eval()
    theirs.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    pictures = np.concatenate([photograph("astronaut", 100), photograph("coffee", 100)])
    extractor = load_extractor("clip", tmp_path)
    assert extractor.name.startswith("clip_")  # not ViT-L/14: not to be called plain CLIP
    expected = theirs(**processor(list(pictures), return_tensors="pt", input_data_format="channels_first"))
    embedding = extractor(pictures)["embedding"]
    assert embedding.shape == (2, 24)
    torch.testing.assert_close(embedding, expected.image_embeds, rtol=0, atol=5e-3)
