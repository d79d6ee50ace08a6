"""The paper's Table 2: its runs, its settings and the table."""
