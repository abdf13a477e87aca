"""The flags of models that are as small as they can be."""


def tiny(*stacks, layers=1):
    """The flags of these stacks, each of 16 channels in 2 heads."""
    sizes = (("layers", layers), ("embed-dim", 16), ("ffn-embed-dim", 16), ("attention-heads", 2))
    return [word for stack in stacks for name, size in sizes for word in (f"--{stack}-{name}", str(size))]


def tiny_language_model(layers=1):
    return [*tiny("decoder", layers=layers), "--decoder-input-dim", "16", "--decoder-output-dim", "16"]
