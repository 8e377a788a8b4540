"""The learning-rate schedule of the released code."""


def get_lr(learning_rate, schedule, gamma, epoch):
    """The learning rate of `epoch`, counted from 0.

    It is `learning_rate`, multiplied by `gamma` at the start of each epoch in `schedule`.
    """
    for milestone in schedule:
        if milestone <= epoch:
            learning_rate *= gamma
    return learning_rate
