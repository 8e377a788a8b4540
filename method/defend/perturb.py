"""Perturbed answers: random noise on a teacher's logits. This is a release rule, which needs no training.

The slides of Nasty Teacher (Ma et al., ICLR 2021) end with the question whether random perturbation protects a teacher.
No form is published. This form is OURS:

    t'(x) = top( t(x) + a n(x) ),   n(x)_k ~ N(0, 1)

t    the teacher                                      n    the noise, a function of the query x and of `noise_seed`
a    `strength`, in units of the logits               top  if the noise makes another class the highest, the two
                                                           exchange their values, so the top-1 class is that of t

Images with equal bits always get equal answers, so repeated queries do not average out the noise. A cropped or flipped
image is another query. Without augmentation a student learns from the same noise in every epoch. With augmentation the
noise is new in every epoch, and the student averages over it. An attacker who repeats queries with invisible changes
can also average over the noise. So deterministic noise only increases the number of queries that an attacker needs.
"""

from dataclasses import dataclass

import torch

from method.release import Release
from utils.keys import key


def scramble(words):
    """Replace each int64 number by a hash: the finaliser of SplitMix64 (Steele et al., 2014) with arithmetic shifts."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ (words >> shift)) * factor  # wraps around
    return words ^ (words >> 31)


def noise(images, count, seed):
    """Standard normal numbers, float32 (N, count), from the bits of each image (N, …). seed: below 2^31."""
    bits = images.detach().float().flatten(1).contiguous().view(torch.int32).long()
    positions = scramble(torch.arange(bits.shape[1], device=bits.device) + (seed << 32))
    sums = scramble(bits ^ positions).sum(1, keepdim=True)  # a sum of integers is the same in any order
    words = scramble(sums + torch.arange(1, count + 1, device=bits.device) * 0x1E3779B97F4A7C15)
    uniform = ((words & (2**52 - 1)).double() + 0.5) / 2**52
    return torch.special.ndtri(uniform).float()


def keep_top(noisy, logits):
    """Exchange two values in each row of `noisy` (N, C), so that the top-1 class is that of `logits` (N, C)."""
    top, noisy_top = logits.argmax(1, keepdim=True), noisy.argmax(1, keepdim=True)
    low, high = noisy.gather(1, top), noisy.gather(1, noisy_top)
    return noisy.scatter(1, noisy_top, low).scatter(1, top, high)


class Perturb(Release):
    @dataclass
    class Params:
        strength: float = key("a, standard deviation of the noise, in units of the logits", low=0)
        noise_seed: int = key("seed of the noise, which the defender keeps secret", default=0, low=0, below=2**31)

    def respond(self, images, logits):
        p = self.params
        return keep_top(logits + p.strength * noise(images, logits.shape[1], p.noise_seed), logits)
