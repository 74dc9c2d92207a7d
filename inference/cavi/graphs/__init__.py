"""Mean fields of models of graphs, whose nodes' latents meet in pairs."""
