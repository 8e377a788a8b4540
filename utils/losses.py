"""Loss terms of several papers."""

import torch.nn.functional as F


def cross_entropy(logits, labels, label_smoothing=0.0):
    """CE(softmax(logits), labels), averaged over the batch. logits (N, C), labels (N,)."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def kl(p, q, T=1.0):
    """KL(P ‖ Q) = Σ P log(P/Q) of P = softmax(p/T) and Q = softmax(q/T), summed over classes, averaged over the batch.

    p, q: logits (N, C). Gradients flow into both arguments. `torch.nn.functional.kl_div` takes the arguments in reverse
    order and calls p the target.
    """
    log_p, log_q = F.log_softmax(p / T, dim=1), F.log_softmax(q / T, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
