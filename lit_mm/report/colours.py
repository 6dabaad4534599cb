"""Colours of the curves and of the sample sheet."""

# Paul Tol's "bright" scheme, which colour-blind readers can tell apart (https://personal.sron.nl/~pault/)
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
MORE = ("#EE7733", "#009988", "#332288", "#882255", "#999933", "#77AADD")  # from Paul Tol's other schemes
INK, GREY, FAINT, RIGHT, WRONG = "#222222", "#6b6b6b", "#e4e4e4", "#1a7f37", "#c1272d"
