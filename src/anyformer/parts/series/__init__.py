"""Time series: their front-end, distilling and decomposition, the laws of what comes."""
