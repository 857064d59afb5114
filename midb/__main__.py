"""`python -m midb` is the command `midb`: `accelerate launch -m midb train recipe.yaml` starts one process for each GPU."""

from midb.cli import app

app(prog_name="midb")
