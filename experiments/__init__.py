"""What the package is built and measured with: the embedded model, tables and benchmarks."""
