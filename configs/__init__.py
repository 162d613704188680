"""The embedded default and the recipes, installed as the package mlxfn_configs."""
