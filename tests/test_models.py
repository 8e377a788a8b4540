"""The networks agree with the released ones (tests/data/zoo.json.gz), with torchvision and with their docstrings."""

import copy
import functools
import gzip
import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import model
from model import densenet, depthwise, preresnet, shufflenetv2
from training.zoo import Zoo
from utils.data import DATASETS
from utils.errors import UserError

ZOO = json.loads(gzip.decompress((Path(__file__).parent / "data/zoo.json.gz").read_bytes()))["models"]
GOLDEN = [(name, key) for name in ZOO for key in ZOO[name] if key.startswith("logits_")]
ANY_SIZE = ["resnet8", "resnet18", "resnet50", "densenet121", "resnext29", "mobilenetv2", "shufflenetv2"]
ONE_OF_EACH = [
    "net",
    "mlp",
    "resnet8",
    "resnet18",
    "preresnet20",
    "preresnet44",
    "densenet121",
    "resnext29",
    "mobilenetv2",
    "shufflenetv2",
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads do not make batches of two images faster. On busy cores they make them ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def on_meta(name, num_classes=10, image_size=32):
    """A network without memory for its weights. Not to be changed."""
    with torch.device("meta"):
        return model.build(name, num_classes, image_size)


def fill(name, num_classes=10, image_size=32, known=None):
    """A network in eval mode with the weights with which the logits in tests/data were computed.

    known: the weights of the network for another number of classes; those of the same shape are equal.
    """
    network, known = copy.deepcopy(on_meta(name, num_classes, image_size)), known or {}
    state = network.state_dict()
    for i, (key, old) in enumerate(state.items()):
        if key in known and known[key].shape == old.shape:
            state[key] = known[key]
            continue
        x = np.random.RandomState(i).standard_normal(tuple(old.shape))
        if key.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif key.endswith(("running_mean", "bias")):
            x = 0.1 * x
        elif old.dim() == 1:
            x = 1 + 0.1 * x
        else:
            x = x * sqrt(2 / np.prod(old.shape[1:]))
        state[key] = torch.from_numpy(np.asarray(x)).to(old.dtype) if old.is_floating_point() else torch.tensor(0)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def golden_images(size=32):
    return torch.from_numpy(np.random.RandomState(2021).standard_normal((2, 3, size, size))).float()


def small_images(name):
    return golden_images(16 if name in ANY_SIZE else 32)


@pytest.fixture(scope="module")
def filled():
    """A function from a name to the network with 10 classes and the reproducible weights. Tests must not change it."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = fill(name)
        return made[name]

    return get


def convolutions(network):
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("name", ZOO)
def test_keys_and_shapes(name):
    network = on_meta(name)
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == ZOO[name]["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == ZOO[name]["parameters"]


@pytest.mark.parametrize(("name", "key"), GOLDEN)
def test_golden_logits(name, key, filled):
    _, num_classes, _, size = key.split("_")
    num_classes, size = int(num_classes), int(size.removesuffix("px"))
    network = filled(name) if num_classes == 10 else fill(name, num_classes, size, filled(name).state_dict())
    logits = network(golden_images(size))
    assert logits.shape == (2, num_classes)
    torch.testing.assert_close(logits[:, :10], torch.tensor(ZOO[name][key]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_forward_is_head_of_features(name, filled):
    network, images = filled(name), small_images(name)
    features = network.features(images)
    logits = network(images)
    assert features.dim() == 2 and torch.equal(network.head(features), logits)
    again, same = network(images, with_features=True)
    assert torch.equal(again, features) and torch.equal(same, logits)
    assert list(network.modules())[-1].weight.shape[1] == features.shape[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_channels_last_and_bf16(name, device, filled):
    """channels_last changes only rounding, and bf16 little. A training step gives each parameter a gradient."""
    network, images = filled(name), small_images(name)
    logits = network(images)
    fast = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
    images = images.to(device, memory_format=torch.channels_last)
    scale = logits.abs().max().item()
    if device == "cpu":
        torch.testing.assert_close(fast(images), logits, rtol=1e-4, atol=1e-4 * scale)
    fast.bf16 = True
    near, features = fast(images), fast(images, with_features=True)[0]
    assert near.dtype == features.dtype == torch.float32
    torch.testing.assert_close(near.cpu(), logits, rtol=0, atol=0.1 * scale)

    fast.train().requires_grad_(True)
    fast(images).square().sum().backward()
    for key, parameter in fast.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["densenet121", "shufflenetv2"])
def test_compiles_in_one_graph(name, monkeypatch):
    """These networks have a child named `features`, or a branch that depends on the memory format."""
    monkeypatch.setitem(densenet.DEPTHS, 121, (4, (1, 1, 1, 1)))
    network = model.build(name, 10).eval().to(memory_format=torch.channels_last)
    images = golden_images().to(memory_format=torch.channels_last)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize(("num_classes", "size"), [(100, 32), (200, 64)])
def test_classes_and_sizes(name, num_classes, size):
    network = on_meta(name, num_classes, size)
    images = torch.empty(2, 3, size, size, device="meta")
    assert network.head(network.features(images)).shape == (2, num_classes)


# Networks without logits in tests/data are compared with equal blocks of torchvision, or with the equation.


def test_resnet50_is_torchvisions_with_a_small_stem(filled):
    reference = torchvision.models.resnet50(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    state = filled("resnet50").state_dict()
    renamed = {k.replace("shortcut", "downsample").replace("linear", "fc"): v for k, v in state.items()}
    reference.load_state_dict(renamed)
    images = golden_images()
    torch.testing.assert_close(filled("resnet50")(images), reference.eval()(images))


def test_resnext29_is_made_of_torchvisions_bottlenecks(filled):
    resnet = torchvision.models.resnet
    reference = resnet.ResNet(resnet.Bottleneck, [3, 3, 3, 1], groups=8, width_per_group=64)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = reference.layer4 = nn.Identity()
    reference.fc = nn.Linear(1024, 10)
    # torchvision registers the parts of a block in the same order, so tensors are matched by position.
    values = filled("resnext29").state_dict().values()
    reference.load_state_dict(dict(zip(reference.state_dict(), values, strict=True)))
    images = golden_images()
    torch.testing.assert_close(filled("resnext29")(images), reference.eval()(images))


def test_shufflenetv2_is_torchvisions_with_a_small_stem_and_biases(filled):
    network = copy.deepcopy(filled("shufflenetv2"))
    reference = torchvision.models.shufflenet_v2_x1_0(num_classes=10)
    reference.conv1 = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24))
    reference.maxpool = nn.Identity()
    widens = reference.stage2[0].branch2  # torchvision widens in the first convolution, this project in the last
    widens[0], widens[1] = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24)
    widens[3], widens[4] = nn.Conv2d(24, 24, 3, 2, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
    widens[5] = nn.Conv2d(24, 58, 1, bias=False)
    for conv in convolutions(network):
        nn.init.zeros_(conv.bias)
    state = network.state_dict()
    for old, new in {"residual": "branch2", "shortcut": "branch1", "pre": "conv1"}.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    reference.load_state_dict({key: state[key] for key in reference.state_dict()})
    images = golden_images()
    torch.testing.assert_close(network(images), reference.eval()(images))


def test_interleave_is_channel_shuffle_and_keeps_the_memory_format():
    first, second = torch.randn(2, 2, 3, 4, 5)
    expected = nn.functional.channel_shuffle(torch.cat((first, second), 1), 2)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        first, second = (x.to(memory_format=memory_format) for x in (first, second))
        mixed = shufflenetv2.interleave(first, second)
        assert torch.equal(mixed, expected) and mixed.is_contiguous(memory_format=memory_format)


def test_preresnet_bottleneck():
    block, relu = preresnet.Bottleneck(16, 8, stride=2).eval(), nn.ReLU()
    inner = nn.Sequential(block.bn1, relu, block.conv1, block.bn2, relu, block.conv2, block.bn3, relu, block.conv3)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(block(x), inner(x) + block.downsample(x))
    assert block(x).shape == (2, 32, 4, 4)


def test_mlp_ends_in_relu(filled):
    network, images = filled("mlp"), golden_images()
    x = images.reshape(2, -1)
    for layer in (network.fc1, network.fc2, network.fc3):
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(network(images), x)
    assert (x == 0).any()


def test_cifar_resnets():
    parameters = {8: 78_042, 20: 272_474, 32: 466_906}
    for depth, expected in parameters.items():
        network = on_meta(f"resnet{depth}")
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
        layers = [c for c in convolutions(network) if c.kernel_size == (3, 3)] + [network.linear]
        assert len(layers) == depth


def test_preresnet_depths():
    for depth, blocks, kind in [(8, 1, "BasicBlock"), (38, 6, "BasicBlock"), (44, 7, "Bottleneck")]:
        network = on_meta(f"preresnet{depth}")
        for stage in (network.layer1, network.layer2, network.layer3):
            assert [type(block).__name__ for block in stage] == blocks * [kind]


def test_initial_weights_preresnet():
    torch.manual_seed(0)
    for network in (model.build("preresnet32", 10), model.build("preresnet56", 10)):
        for conv in convolutions(network):
            deviation = sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
            assert torch.isclose(conv.weight.std(), torch.tensor(deviation), rtol=0.2)
        weights = torch.cat([conv.weight.flatten() / conv.weight.std() for conv in convolutions(network)])
        assert abs(weights.pow(4).mean() - 3) < 0.2  # the kurtosis is 3 for normal and 1.8 for uniform weights


def test_initial_weights_resnext():
    torch.manual_seed(0)
    network = model.build("resnext29", 100)
    for conv in convolutions(network):
        deviation = sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert torch.isclose(conv.weight.std(), torch.tensor(deviation), rtol=0.1)
    assert torch.isclose(network.classifier.weight.std(), torch.tensor(sqrt(2 / 1024)), rtol=0.05)
    weights = network.classifier.weight
    assert abs((weights / weights.std()).pow(4).mean() - 3) < 0.2
    assert not any(value.any() for key, value in network.named_parameters() if key.endswith("bias"))


@pytest.mark.parametrize("name", ["net", "mlp", "resnet8", "resnet18", "densenet121", "mobilenetv2", "shufflenetv2"])
def test_initial_weights_elsewhere_are_pytorchs(name):
    torch.manual_seed(0)
    for module in model.build(name, 10).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 1000:
            bound = 1 / sqrt(module.weight[0].numel())
            assert 0.95 * bound < module.weight.abs().max() <= bound
            assert torch.isclose(module.weight.std(), torch.tensor(bound / sqrt(3)), rtol=0.1)


def test_batch_norm_scales_start_at_one():
    for name in ONE_OF_EACH:
        for module in model.build(name, 10).modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.bias == 0).all()


def test_names():
    assert model.names() == sorted(model.names())
    assert set(ZOO) | {"resnet8", "resnet101", "resnet152"} <= set(model.names())
    for name in model.names():
        assert isinstance(on_meta(name), model.network.Network)
        classifier = list(on_meta(name).modules())[-1]  # which `mildly_nasty` trains
        assert classifier.weight.shape[0] == 10 and classifier.bias.shape == (10,)


def test_options():
    assert model.options("net") == {"num_channels": 32, "dropout_rate": 0.0}
    assert all(model.options(name) == {} for name in model.names() if name != "net")
    network = model.build("net", 10, num_channels=8, dropout_rate=0.5)
    assert network.conv1.out_channels == 8 and network.fc2.in_features == 32
    features = network.train().features(torch.randn(64, 3, 32, 32))
    zeros = (features == 0).float().mean()
    assert 0.7 < zeros < 0.8  # ReLU sets half to 0, and dropout half of the rest


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("resnet81", 10), {}, 'unknown network "resnet81"; there are densenet121, .* did you mean "resnet8"'),
        (("ResNet18", 10), {}, 'did you mean "resnet18"'),
        (("nonsense", 10), {}, "there are .*shufflenetv2$"),
        (("preresnet", 10), {}, 'did you mean "preresnet'),
        (("preresnet21", 10), {}, "depth of a preresnet must be 6n.2 .8, 14, .*, not 21"),
        (("preresnet2", 10), {}, "must be 6n.2 .*, not 2$"),
        (("net", 10, 64), {}, "^net takes 32x32 images, not 64x64$"),
        (("mlp", 10, 64), {}, "^mlp takes 32x32 images, not 64x64$"),
        (("preresnet44", 10, 64), {}, "^preresnet44 takes 32x32 images, not 64x64$"),
        (("net", 10), {"num_channels": 0}, "num_channels must be at least 1, not 0"),
        (("net", 10), {"dropout_rate": 1.0}, "dropout_rate must be at least 0 and below 1, not 1.0"),
        (("net", 10), {"dropout_rate": -0.1}, "not -0.1"),
        (("net", 10), {"dropout_rate": float("nan")}, "not nan"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(UserError, match=message) as caught:
        model.build(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_options_of_an_unknown_network_are_refused():
    with pytest.raises(UserError, match="unknown network"):
        model.options("resnet19")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_depthwise_is_the_library_s_grouped_convolution(dtype, stride):
    ours, images = depthwise.Depthwise(6, stride), torch.randn(4, 6, 9, 9)
    plain = nn.Conv2d(6, 6, 3, stride, padding=1, groups=6)
    plain.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, plain):
        layer = layer if dtype == torch.bfloat16 else layer.to(dtype)
        seen = images.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = layer(seen)
        outputs.square().sum().backward()
        found.append((outputs, seen.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_frozen_network_in_bf16_answers_with_autocasts_bits(name, device, monkeypatch):
    """Features, logits and the gradient of the images have the same bits. Attacks without data use this gradient."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # as in `engine.pick_device`
    zoo = Zoo(DATASETS["cifar10"], torch.device(device), bf16=True)
    network = zoo.fresh(name)
    images = torch.randn(2, 3, 32, 32, device=device)
    with torch.no_grad():
        network.train()(images)  # gives batch norm new running averages
    found = []
    for frozen in (copy.deepcopy(network).eval().requires_grad_(False), zoo.freeze(network)):
        seen = images.clone().requires_grad_()
        features, logits = frozen(seen, with_features=True)
        (features.sum() + logits.square().sum()).backward()
        found.append((features, logits, seen.grad))
    assert all(map(torch.equal, *found))
    assert {p.dtype for p in network.parameters() if p.dim() > 1} == {torch.bfloat16}
