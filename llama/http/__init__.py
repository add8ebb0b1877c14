"""HTTP as every service of LLAMA serves it, and as it asks others."""
