"""Prints a model's number of parameters, the overhead over stock, and the controls of equal size."""

from fairseq_gpam import parameters


def print_parameters(model: parameters.Model) -> None:
    """Prints the exact number of parameters, how many each site adds, and the overhead over the stock model."""
    ours, stock = parameters.build(model), parameters.build(model.stock())
    total, stock_total = parameters.count(ours), parameters.count(stock)
    extra = total - stock_total
    print(f"model           {model.command()}")
    print(f"vocabulary      {model.vocabulary} entries, the same for source and target (--vocabulary)")
    print(f"parameters      {total:,}")
    print(f"stock           {stock_total:,}  {model.stock().arch}")
    print(f"overhead        {extra:+,}  {extra / stock_total:+.4%} of stock")
    layers = parameters.count_layers(stock)
    print(f"                {extra / layers:+.4%} of the {layers:,} in stock's layers (no embeddings, no output)")
    for site, name, number, added in parameters.count_sites(ours):
        print(f"  {site:8} {name:20} {number:3} attentions  {added:+,}")
    queries = parameters.count_query_width(ours)
    if queries:
        rank = parameters.parse(model).gpam_query_rank
        print(f"  queries and keys of width {rank} in a head (--gpam-query-rank): {queries:+,}")
    fusion = parameters.count_layer_fusion(ours)
    if fusion:
        print(f"  fusion of the layers (--gpam-layer-fusion): {fusion:+,}")
    if any("dagpam" in name for _, name, _, _ in parameters.count_sites(ours)):
        settings = parameters.parse(model)
        if settings.gpam_negative_source == "input":
            print("  W_Q⁻ of daGPAM: from the layer's input to all heads (--gpam-negative-source input)")
        else:
            print(f"  W_Q⁻ of daGPAM: {settings.gpam_negative_projection} (--gpam-negative-projection)")


def print_controls(model: parameters.Model) -> None:
    """Prints the flags of the parameter-matched controls and the differences that remain."""
    print("\ncontrols")
    for arm in parameters.match(model):
        print(f"{arm.name:15} {arm.model.command()}")
        share = arm.difference / arm.wanted
        print(f"                {arm.parameters:,} parameters, {arm.difference:+,} ({share:+.5%}) from {arm.wanted:,}")
