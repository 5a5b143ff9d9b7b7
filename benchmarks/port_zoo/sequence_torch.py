"""A small net for text lines: convolutions, resizes, an LSTM and a GRU over the columns."""

import torch.nn.functional as F
from torch import Tensor, nn

from .sequence_config import SequenceConfig


class SequenceNet(nn.Module):
    """Images float (batch, channels, height, width) to logits (batch, columns, classes)."""

    def __init__(self, cfg: SequenceConfig) -> None:
        super().__init__()
        self.middle = cfg.middle
        self.conv = nn.Conv2d(cfg.channels, cfg.features, 3, padding=1)
        self.norm = nn.GroupNorm(cfg.groups, cfg.features, eps=cfg.norm_eps)
        self.act = nn.GELU(approximate="tanh" if cfg.activation == "gelu_tanh" else "none")
        self.up = nn.ConvTranspose2d(cfg.features, cfg.up, 3, stride=2, padding=1, output_padding=1)
        self.skip = nn.Conv2d(cfg.channels, cfg.up, 1)
        self.lstm = nn.LSTM(cfg.up, cfg.lstm, batch_first=True)
        self.gru = nn.GRU(cfg.lstm, cfg.gru, batch_first=True)
        self.hidden = nn.Linear(cfg.gru, cfg.gru)
        self.head = nn.Linear(cfg.gru, cfg.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.up(self.act(self.norm(self.conv(images))))
        x = F.interpolate(x, size=self.middle, mode="bilinear", align_corners=False)
        skip = F.interpolate(images, size=self.middle, mode="bicubic", align_corners=False)
        x = x + self.skip(skip)
        x = x.mean(dim=2).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return self.head(self.hidden(x).tanh())
