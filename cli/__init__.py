"""The command line of mlxfn, installed as the package mlxfn_cli."""
