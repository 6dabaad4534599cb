"""Colours of the curves and the samples."""

# Colours of Paul Tol's "bright" scheme, told apart by colour-blind readers (https://personal.sron.nl/~pault/)
PALETTE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
MORE = ("#EE7733", "#009988", "#332288", "#882255", "#999933", "#77AADD")  # of his other schemes
INK, GREY, FAINT, RIGHT, WRONG = "#222222", "#6b6b6b", "#e4e4e4", "#1a7f37", "#c1272d"
