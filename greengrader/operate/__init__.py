"""The operator's command, `python3 -m greengrader`: one module per noun, each of which declares its own subcommands."""
