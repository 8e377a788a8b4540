"""Perturbed answers: random noise on a teacher's logits, the closing question of the slides of Nasty Teacher (Ma et
al., ICLR 2021). A way to answer, which needs no training and works for every teacher and attack. The form is OURS:

    t'(x) = top( t(x) + a n(x) ),   n(x)_k ~ N(0, 1)

t    the teacher                                      n    the noise, a function of the query x and of `noise_seed`
a    `strength`, in units of the logits               top  where the noise makes another class the highest, the two
                                                           exchange their values: the answer's top-1 stays t's

The same image, bit by bit, always gets the same answer, so asking again does not average the noise out. An image that
is cropped or flipped anew is another query. So a student sees the same noise in every epoch with "augmentation": 0, and
fresh noise, which it averages over, with augmentation. A thief who repeats queries with invisible changes can do that
too: deterministic noise raises the price of a query, no more.
"""

from dataclasses import dataclass

import torch

from method.release import Release
from utils.keys import key


def scramble(words):
    """Each int64 number replaced by a hash of it: the finaliser of SplitMix64 (Steele et al., 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ (words >> shift)) * factor  # wraps around
    return words ^ (words >> 31)


def noise(images, count, seed):
    """Standard normal numbers, float32 (N, count), from the bits of each of the images (N, …); seed: below 2^31."""
    bits = images.detach().float().flatten(1).contiguous().view(torch.int32).long()
    places = scramble(torch.arange(bits.shape[1], device=bits.device) + (seed << 32))
    sums = scramble(bits ^ places).sum(1, keepdim=True)  # of whole numbers: exact in any order
    words = scramble(sums + torch.arange(1, count + 1, device=bits.device) * 0x1E3779B97F4A7C15)
    uniform = ((words & (2**52 - 1)).double() + 0.5) / 2**52
    return torch.special.ndtri(uniform).float()


def keep_top(noisy, logits):
    """`noisy` (N, C) with two values of a row exchanged where its highest is not where that of `logits` is."""
    wanted, found = logits.argmax(1, keepdim=True), noisy.argmax(1, keepdim=True)
    low, high = noisy.gather(1, wanted), noisy.gather(1, found)
    return noisy.scatter(1, found, low).scatter(1, wanted, high)


class Perturb(Release):
    @dataclass
    class Params:
        strength: float = key("a, standard deviation of the noise, in units of the logits", low=0)
        noise_seed: int = key("the defender's, of the noise", default=0, low=0, below=2**31)

    def __call__(self, images, with_features=False):
        p, (features, logits) = self.params, super().__call__(images, with_features=True)
        logits = keep_top(logits + p.strength * noise(images, logits.shape[1], p.noise_seed), logits)
        return (features, logits) if with_features else logits
