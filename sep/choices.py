"""Names that a setting can take. They need no torch, so that a command line can list them at once."""

from __future__ import annotations

from typing import Literal

NetworkName = Literal["resnet8", "resnet18", "senet18", "vgg16-bn", "densenet121", "googlenet", "mobilenet-v2", "vit-small"]
Targets = Literal["shift", "random-class", "per-sample", "untargeted"]
Precision = Literal["auto", "float32", "tf32", "bf16"]
Kernels = Literal["auto", "plain", "fused", "compiled"]
Channels = Literal["colour", "grey"]
