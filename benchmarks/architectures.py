"""Which architectures of torchvision and timm AFD attaches to and deploys with.

    python benchmarks/architectures.py [SPEC ...]

Each is made with random weights and a module of preset `default` that changes something, frozen as TorchScript, and
asked with the gate open, where it must answer as the original does. Prints a line for each, and how many can be
protected. Without SPECs one or two of each family: `torchvision:resnet18`, `timm:levit_128s` and so on.
"""

import argparse
import warnings

import torch

from afd_serve.errors import AfdError
from afd_serve.export import example_inputs, freeze_classifier
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import AfdClassifier
from afd_serve.models.presets import preset_config

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_large regnet_x_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t
    swin_v2_t vgg11 vgg16_bn vit_b_32 wide_resnet50_2
"""
TIMM = """
    beit_base_patch16_224 cait_xxs24_224 coatnet_nano_rw_224 convnext_atto convnextv2_atto cspresnet50 darknet53
    deit_tiny_patch16_224 densenet121 dla34 dpn68 edgenext_xx_small efficientformer_l1 efficientnet_b0
    efficientnet_lite0 efficientvit_b0 fastvit_t8 fbnetc_100 gernet_s ghostnet_100
    hardcorenas_a hgnet_tiny hrnet_w18_small inception_next_tiny inception_v4 lcnet_050 levit_128s mixer_s32_224
    mnasnet_small mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xs nf_resnet50 nfnet_f0
    pit_ti_224 poolformer_s12 regnety_004 repvgg_a0 repvit_m1 res2net50_26w_4s resnest14d resnet50 resnet50d
    resnetv2_50 rexnet_100 selecsls42b seresnet50 skresnet18 starnet_s1 swin_tiny_patch4_window7_224
    tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tf_mobilenetv3_small_100 tiny_vit_5m_224 tinynet_a tresnet_m
    vgg11 vit_tiny_patch16_224 vovnet39a xception41
"""
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    everything = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
    specs = parser.parse_args().specs or everything
    warnings.simplefilter("ignore")  # the libraries', of weights that are not used here
    protected = sum(try_out(spec) for spec in specs)
    print(f"{protected} of {len(specs)} can be protected")


def try_out(spec: str) -> bool:
    """Whether one can be protected; prints how, or why not."""
    try:
        backbone = load_backbone(f"{spec}@random")
        afd = awake(backbone)
        difference = deployed_difference(AfdClassifier(backbone, afd).eval(), backbone.preprocessing.size)
    except AfdError as error:
        print(f"{spec}: no, {str(error)[:200]}", flush=True)
        return False
    parameters = sum(parameter.numel() for parameter in afd.parameters())
    print(f"{spec}: stem and {len(backbone.blocks)} blocks, {parameters:,} parameters, deployed {difference:.0e} apart")
    return difference < TOLERANCE


@torch.no_grad()
def awake(backbone: Backbone) -> AfdNet:
    """A module as if it were fitted: what starts at zero has other values."""
    torch.manual_seed(0)
    afd = AfdNet(preset_config("default", backbone)).eval()
    for parameter in afd.parameters():
        if not parameter.any():
            parameter.normal_(std=0.01)
    return afd


@torch.inference_mode()
def deployed_difference(classifier: AfdClassifier, size: int) -> float:
    """How far apart the frozen and the original classifier's logits are, over the largest."""
    inputs = example_inputs(size)
    inputs = inputs._replace(gate=torch.ones_like(inputs.gate))
    expected, _ = classifier(*inputs)
    logits, _ = freeze_classifier(classifier, inputs)(*inputs)
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-9))


if __name__ == "__main__":
    main()
