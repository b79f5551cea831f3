"""The verbs that make a cluster of several machines: head, token, worker, login."""

from __future__ import annotations

import click

from beo import config, table, units
from beo.cli.group import Verb, option
from beo.cli.tables import listing, show
from beo.client import Cluster
from beo.errors import NotFound, UsageError

TOKEN_COLUMNS = (
    table.Column("number"),
    table.Column("state"),
    table.Column("role"),
    table.Column("user"),
    table.Column("used"),
    table.Column("uses"),
    table.Column(
        "left", lambda value: units.format_duration(int(value)) if isinstance(value, float) and value else "-"
    ),
    table.Column("maker"),
)


@click.command(
    cls=Verb,
    examples=[
        ("beo head init", "listen where others reach this machine"),
        ("beo head init --listen 192.168.1.10:7420", "listen there"),
        ("beo head init --workers 1", "let this machine compute, too"),
        ("beo head token", "let a second head join; print the command to type there"),
        ("beo head join HOST:PORT --token T", "be the second head; 'beo head token' prints this line"),
        ("beo head join --listen 192.168.1.12", "be reached there from now on"),
        ("beo head leave", "be a head no more; the other one goes on alone"),
    ],
    exits=[("124", "the heads are not in step yet; it goes on trying")],
)
@click.argument("action", type=click.Choice(["init", "join", "token", "leave"]))
@click.argument("first", default="", metavar="[HEAD]")
@option("--token", "text", default="", metavar="TOKEN", help="What 'beo head token' printed; -: read it from stdin.")
@option("--expires", default="1h", show_default=True, metavar="TIME", help="The token is of no use after that.")
@option("--listen", default="", metavar="HOST:PORT", help="This machine's address in the cluster's network.")
@option("--workers", type=click.IntRange(0), help="Nodes on this machine itself (default: as before, or none).")
@option("--slots", type=click.IntRange(1), help="Slots of each (default: the processors, shared out).")
def head(
    action: str,
    first: str,
    text: str,
    expires: str,
    listen: str,
    workers: int | None,
    slots: int | None,
) -> None:
    """Make this machine a head of a cluster of several, start it, and print how others join.

    init makes it the first head. A cluster that 'beo up' has made in this folder goes on with all its jobs: 'beo down'
    it first. join makes it the second one, beside the HEAD that listens there: it copies all that happens, and goes on
    when the first one dies. It returns when both are in step. token, on the first one's machine, lets it join, once.
    leave, on its machine, ends it and lets the other one go on alone; with HEAD (A or B) one that is dead for good.

    'beo up' and 'beo down' start and end what this machine has of the cluster from then on.
    """
    home = config.home()
    if first and action not in ("join", "leave"):
        raise UsageError(f"beo head {action} {first}", "only 'join' and 'leave' take a head", "leave it out")
    if text and action != "join":
        raise UsageError(f"beo head {action} --token", "only 'join' takes one", "leave it out")
    if action == "token":
        _make_token(expires, 1, "head", False, False)
    elif action == "join":
        from beo import pairing

        pairing.join(home, first, text, listen, workers, slots, click.echo)
    elif action == "leave":
        from beo import pairing

        pairing.leave(home, first, click.echo)
    else:
        from beo import machines

        machines.init_head(home, listen, workers, slots, click.echo)


@click.command(
    cls=Verb,
    examples=[
        ("beo token", "for one worker, within an hour"),
        ("beo token --uses 20 --expires 1d", "for twenty workers"),
        ("beo token --role user:ann", "for ann's own computer: she may submit jobs"),
        ("beo token --boot", "for a box without beo: print one line that does it all"),
        ("beo token list", "which there are"),
        ("beo token revoke 3", "nobody may use it any more"),
    ],
)
@click.argument("words", nargs=-1, metavar="[list | revoke NUMBER...]")
@option("--expires", default="1h", show_default=True, metavar="TIME", help="Of no use after that.")
@option("--uses", type=click.IntRange(1), default=1, show_default=True, help="So many machines may use it.")
@option(
    "--role",
    default="worker",
    show_default=True,
    metavar="ROLE",
    help="worker, user:NAME[:UID], admin[:NAME], head or witness.",
)
@option("--boot", is_flag=True, help="For a box without beo: it gets all of it from this head (see 'beo boot').")
@listing
def token(
    words: tuple[str, ...], expires: str, uses: int, role: str, boot: bool, fields: str, as_json: bool, quiet: bool
) -> None:
    """Make a token, with which a machine or a person joins the cluster; print the command to type there.

    A token holds the key by which the newcomer knows the head, and a secret by which the head knows the newcomer: who
    reads it, before it is used, can join in his place. The head itself keeps no copy.

    With --boot the line is for any Linux box, container or namespace: it fetches a Python and beo from the head, whose
    server of boots must be up, and needs no root. Who sits between the box and the head could send another script: the
    second line that is printed takes none but this one.
    """
    if boot and (words or role != "worker"):
        raise UsageError("beo token --boot", "that is for workers", "leave out what else you said")
    match words:
        case ():
            _make_token(expires, uses, role, as_json, quiet, boot)
        case ("list",):
            with Cluster() as cluster:
                _show_tokens(cluster, fields, as_json, quiet)
        case ("revoke", *numbers) if numbers:
            with Cluster() as cluster:
                for view in cluster.revoke_tokens([_number(word) for word in numbers]):
                    print(f"token {view.number} is revoked" + (", after its use" if view.used else ""))
        case ("revoke",):
            raise UsageError("which token", "", "see 'beo token list', then 'beo token revoke NUMBER'")
        case (first, *_):
            raise NotFound.among("action", first, ("list", "revoke"), "see 'beo token --help'")


def _make_token(expires: str, uses: int, role: str, as_json: bool, quiet: bool, boot: bool = False) -> None:
    from beo import machines

    home = config.home()
    kind, user, uid = _role(role)
    if boot:
        _make_boot_line(home, expires, uses, as_json, quiet)
        return
    text, number = machines.new_token(home, kind, uses, units.parse_duration(expires), user, uid)
    line = machines.token_line(home, kind, text)
    if as_json:
        from json import dumps

        print(dumps({"number": number, "token": text, "command": line}))
    else:
        print(text if quiet else line)


def _make_boot_line(home: config.Home, expires: str, uses: int, as_json: bool, quiet: bool) -> None:
    from beo import machines
    from beo.boot import desk, runtime

    made = runtime.current(home)  # first: it takes some seconds, in which no token should be open
    text, number = machines.new_token(home, "worker", uses, units.parse_duration(expires))
    script = desk.script(home, machines.boot_url(home)).encode()
    plain, checked = machines.boot_lines(home, text, made.sha256, script)
    if as_json:
        from json import dumps

        print(dumps({"number": number, "token": text, "pin": made.sha256, "command": plain, "checked": checked}))
    elif quiet:
        print(plain)
    else:
        print(f"{plain}\nor, where somebody may sit between that box and this head:\n{checked}")


def _role(text: str) -> tuple[str, str, int]:
    """Divide a role into its kind, the user's name, and his uid."""
    kind, _, rest = text.partition(":")
    name, _, number = rest.partition(":")
    if kind in ("worker", "head", "witness") and rest:
        raise UsageError(f"--role {text}: a {kind} has no name here", "it says its own when it joins", "leave it")
    if kind != "user":
        if number:
            raise UsageError(f"--role {text}: a {kind} has no uid", "", "leave it")
        return kind, name, -1
    if not name:
        raise UsageError("--role user: of whom", "", "write it as user:NAME")
    if number:
        return kind, name, _number(number)
    import pwd

    try:
        return kind, name, pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"no user {name!r} on this machine", "", f"give the uid too: user:{name}:UID") from None


def _number(word: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise UsageError(f"{word!r} is no number", "", "see 'beo token list'")
    return int(word)


def _show_tokens(cluster: Cluster, fields: str, as_json: bool, quiet: bool) -> None:
    rows = [
        {
            "number": view.number,
            "state": view.state,
            "role": view.role,
            "user": view.user,
            "uid": view.uid,
            "used": view.used,
            "uses": view.uses,
            "left": view.left_s,
            "maker": view.maker,
        }
        for view in cluster.tokens()
    ]
    show(rows, TOKEN_COLUMNS, fields, as_json, quiet, ("uid",))


@click.command(
    cls=Verb,
    examples=[
        ("beo worker --head HOST:PORT --token T", "join; the head's 'beo token' prints this line"),
        ("beo worker", "start it again"),
        ("beo worker --foreground", "the same, for systemd"),
    ],
)
@option("--head", "address", default="", metavar="HOST:PORT", help="Where the head listens.")
@option("--token", "text", default="", metavar="TOKEN", help="What 'beo token' printed; -: read it from stdin.")
@option("--name", default="", metavar="NAME", help="This node's name (default: the machine's).")
@option("--slots", type=click.IntRange(1), help="Ranks at one time (default: as before, or the processors).")
@option("--rack", metavar="RACK", help="Where it stands (default: as before): votes are spread over racks.")
@option("--foreground", is_flag=True, help="Stay, and end the worker when told to: for systemd.")
def worker(address: str, text: str, name: str, slots: int | None, rack: str | None, foreground: bool) -> None:
    """Make this machine a worker of a cluster, in the background; return when the head has it.

    Once it has joined it needs no token again: 'beo worker' or 'beo up' starts it, 'beo down' ends it.
    """
    from beo import machines

    machines.join(config.home(), address, text, name, slots, click.echo, foreground, rack)


@click.command(
    cls=Verb,
    examples=[
        ("beo witness --head HOST:PORT --token T", "join; 'beo token --role witness' prints this line"),
        ("beo witness", "start it again"),
        ("beo witness --foreground", "the same, for systemd"),
    ],
)
@option("--head", "address", default="", metavar="HOST:PORT", help="Where a head listens.")
@option("--token", "text", default="", metavar="TOKEN", help="What 'beo token' printed; -: read it from stdin.")
@option("--name", default="", metavar="NAME", help="The witness's name (default: the machine's).")
@option("--foreground", is_flag=True, help="Stay, and end the witness when told to: for systemd.")
def witness(address: str, text: str, name: str, foreground: bool) -> None:
    """Make this machine a witness: it votes when two heads lose sight of each other, and does nothing else.

    A pair of heads with workers needs none: some of the workers vote. Without, a witness on any third machine lets
    either head go on when the other one dies. It keeps what it has promised on its disk, in BEO_DIR/witness.
    """
    from beo import machines

    machines.be_witness(config.home(), address, text, name, click.echo, foreground)


@click.command(
    cls=Verb,
    examples=[("beo login --head HOST:PORT --token T", "the head's 'beo token --role user:NAME' prints this line")],
)
@option("--head", "address", required=True, metavar="HOST:PORT", help="Where the head listens.")
@option("--token", "text", required=True, metavar="TOKEN", help="What 'beo token --role ...' printed; -: from stdin.")
def login(address: str, text: str) -> None:
    """Get a key of your own, so that beo on this machine speaks with a cluster elsewhere."""
    from beo import machines

    machines.login(config.home(), address, text, click.echo)
