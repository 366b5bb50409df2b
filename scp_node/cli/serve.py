"""``nodule-node serve``: the whole node in the foreground."""

from __future__ import annotations

import typer

from scp_node.cli.options import ConfigFile, examples, new_app, settings_from

app = new_app()


@app.command("serve", epilog=examples("nodule-node serve", "nodule-node serve --config /etc/nodule-node/node.toml"))
def serve(config: ConfigFile = None) -> None:
    """Run the node: receive, analyse, report, deliver.

    Starts and watches all processes of the node, and stops them cleanly on SIGTERM or Ctrl-C: running work gets
    worker.drain_s seconds to finish and otherwise goes on at the next start. Run it under a service manager that
    restarts it. Exit codes: 0 stopped as asked, 1 a process kept failing, 78 the settings cannot be used.
    """
    settings = settings_from(config)
    from scp_node.cli.logging import configure_logging, log_warnings
    from scp_node.supervisor import run

    configure_logging(settings, "serve")
    log_warnings(settings)
    raise typer.Exit(run(settings, settings.path))
