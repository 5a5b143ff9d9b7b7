"""A small residual net (He et al. 2016): bottlenecks, a grouped and dilated convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_config import ConvConfig


class Bottleneck(nn.Module):
    def __init__(
        self, cfg: ConvConfig, inputs: int, outputs: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        width = outputs // 2 * 2
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=cfg.norm_eps)
        self.conv2 = nn.Conv2d(
            width,
            width,
            3,
            stride,
            padding=dilation,
            dilation=dilation,
            groups=cfg.groups,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(width, eps=cfg.norm_eps)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=cfg.norm_eps)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False),
            nn.BatchNorm2d(outputs, eps=cfg.norm_eps),
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


class ConvNet(nn.Module):
    """Images float (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, cfg: ConvConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cfg.channels, cfg.stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cfg.stem, eps=cfg.norm_eps)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second = cfg.widths
        self.layer1 = Bottleneck(cfg, cfg.stem, first, stride=1, dilation=2)
        self.layer2 = Bottleneck(cfg, first, second, stride=2, dilation=1)
        self.avgpool = nn.AvgPool2d(3, stride=2, padding=1)
        self.fc1 = nn.Linear(cfg.flat, cfg.hidden)
        self.fc2 = nn.Linear(cfg.hidden, cfg.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x = self.layer2(self.layer1(x))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc2(F.leaky_relu(self.fc1(x), 0.1))
