"""Which architectures of torchvision and timm AFD attaches to and deploys with.

    python benchmarks/architectures.py [SPEC ...]

Each is made with random weights and a module of preset `default` that changes something, frozen as TorchScript, and
asked with the gate open, where it must answer as the original does. Prints a line for each, and how many can be
protected. Without SPECs one or two of each family: `torchvision:resnet18`, `timm:levit_128s` and so on.
"""

import argparse
import multiprocessing
import warnings

import torch

from afd_serve.errors import AfdError
from afd_serve.export import example_inputs, freeze_classifier
from afd_serve.models.afd import AfdNet
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import AfdClassifier
from afd_serve.models.presets import preset_config
from afd_serve.models.torchvision_compat import import_timm, import_torchvision_models

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_large regnet_x_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t
    swin_v2_t vgg11 vgg16_bn vit_b_32 wide_resnet50_2
"""
TIMM = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny
    coatnet_nano_rw_224 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240
    cs3darknet_s cspresnet50 darknet53 davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn68
    edgenext_xx_small efficientformer_l1 efficientnet_b0 efficientnet_lite0 efficientvit_b0 efficientvit_m0
    fasternet_t0 fastvit_t8 fbnetc_100 flexivit_small focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_100
    halonet26t hardcorenas_a hgnet_tiny hiera_tiny_224 hrnet_w18_small inception_next_tiny inception_resnet_v2
    inception_v4 lambda_resnet26t lcnet_050 levit_128s mambaout_femto maxvit_nano_rw_256 mixer_s32_224
    mnasnet_small mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xs mobilevitv2_050
    mvitv2_tiny nasnetalarge nest_tiny nextvit_small nf_resnet50 nfnet_f0 pit_ti_224 poolformer_s12 pvt_v2_b0
    rdnet_tiny regnety_004 repvgg_a0 repvit_m1 res2net50_26w_4s resmlp_12_224 resnest14d resnet50 resnet50d
    resnetv2_50 rexnet_100 samvit_base_patch16_224 selecsls42b sequencer2d_s seresnet50 shvit_s1 skresnet18
    starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s
    tf_mobilenetv3_small_100 tiny_vit_5m_224 tinynet_a tnt_s_patch16_224 tresnet_m twins_pcpvt_small vgg11
    visformer_tiny vit_tiny_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a xception41 xcit_nano_12_p16_224
"""
TOLERANCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    everything = [f"torchvision:{name}" for name in TORCHVISION.split()] + [f"timm:{name}" for name in TIMM.split()]
    specs = parser.parse_args().specs or everything
    warnings.simplefilter("ignore")  # the libraries', of weights that are not used here
    import_torchvision_models()  # once, before the processes part
    import_timm()
    # Each in a process of its own: what torch.jit remembers of the ones before makes every next one slower.
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as processes:
        protected = sum(processes.imap(try_out, specs))
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
