"""DAFL, Data-Free Learning of Student Networks: Chen et al., ICCV 2019.

min_G  a_oh CE(σ(t(Gz)), argmax t(Gz)) + a_ie Σ_k p̄_k log₁₀ p̄_k − a_act mean|features_t(Gz)|
min_s  KL( σ(t(Gz)) ‖ σ(s(Gz)) ),  without a gradient to G

G    the generator of normalised images              features_t  the teacher's features: the input of its classifier
z    standard normal noise                           p̄_k         mean of σ(t(Gz))_k over the batch
s    the student, trained                            σ           softmax
t    the teacher, frozen                             a_…         weights: one-hot, information entropy, activation

Generator and student make one step each per iteration, on the same images. The default weights are those published for
CIFAR-10. As in the released code, two batch norms of the generator have eps 0.8.
"""

from dataclasses import dataclass

import torch

from method.datafree import Generating
from model.foreign import Foreign, no_features
from utils.keys import key
from utils.losses import cross_entropy, kl


def dafl_loss(features, logits, a_oh, a_ie, a_act):
    """The generator's loss and its terms without weights: (loss, one-hot, information entropy, activation), scalars.

    All terms are minimised, so the information entropy and the activation have a negative sign. features (N, F) and
    logits (N, C): of the teacher.
    """
    one_hot = cross_entropy(logits, logits.argmax(1))
    p = logits.softmax(1).mean(0)
    # The floor avoids a NaN in the gradient of 0 log 0
    entropy = (p * p.clamp_min(torch.finfo(p.dtype).tiny).log10()).sum()
    activation = -features.abs().mean()
    return a_oh * one_hot + a_ie * entropy + a_act * activation, one_hot, entropy, activation


class DAFL(Generating):
    @dataclass
    class Params(Generating.Params):
        iterations_per_epoch: int = key("training steps per epoch; there is no training set", default=120, low=1)
        noise_size: int = key("length of the noise vector z", default=1000, low=1)
        generator_eps: float = key(
            "eps of the batch norms after the generator's first two convolutions", default=0.8, above=0
        )
        generator_learning_rate: float = key("initial learning rate of the generator", default=0.02, above=0)
        generator_gamma: float = key(
            "factor by which the generator's learning rate is multiplied at each epoch in schedule",
            default=1.0,
            above=0,
        )
        a_oh: float = key(
            "weight of the one-hot term, the cross-entropy between an answer and its most likely class",
            default=0.05,
            low=0,
        )
        a_ie: float = key("weight of the information entropy of the mean answer", default=5.0, low=0)
        a_act: float = key(
            "weight of the activation term, the mean absolute value of the teacher's features", default=0.01, low=0
        )

        @staticmethod
        def problems(params, networks):
            problems = Generating.Params.problems(params, networks)
            if isinstance(networks["teacher_model"], Foreign):
                problems.append(f'"teacher_model": {no_features(params.teacher_model, params.method)}')
            return problems

    def losses(self, noise):
        images = self.generator(noise)
        features, logits = self.teacher(images, with_features=True)
        weights = self.params.a_oh, self.params.a_ie, self.params.a_act
        loss, one_hot, entropy, activation = dafl_loss(features, logits, *weights)
        self.train_generator({"generator": loss, "one_hot": one_hot, "entropy": entropy, "activation": activation})
        self.images = images.detach()
        return {"loss": kl(logits.detach(), self.model(self.images)), **self.generator_terms}
