# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs xsplice, and reads what it prints for programs."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json

# Version of the form that every command prints.
SCHEMA = 1

# The parameter that says which program it is.
EXECUTABLE = {"executable": {"type": "str", "default": "xsplice"}}


def told(module, words):
    """What the command prints, and its exit code."""
    argv = [module.params["executable"], "--json"] + words
    code, out, err = module.run_command(argv)
    what = " ".join(argv)
    try:
        said = json.loads(out)
        known = said["schema"] == SCHEMA
        keys = [said[key] for key in ("changed", "state", "result", "error")]
    except (ValueError, KeyError, TypeError):
        module.fail_json(
            msg="%s printed no result: %s" % (what, err.strip() or out.strip()), rc=code
        )
    if not known:
        module.fail_json(msg="%s prints results of another version" % what, rc=code)
    # The exit code and the error say the same, or neither counts.
    if (keys[3] is None) != (code in (0, 3)):
        module.fail_json(
            msg="%s exited with %d, and its result says something else" % (what, code),
            rc=code,
        )
    return code, said


def answer(module, said, more):
    """Ends the module with what the command said."""
    result = said["result"] or {}
    values = {
        "changed": said["changed"],
        "condition": said["state"],
        "result": result,
        "warnings": result.get("warnings", []),
    }
    values.update(more)
    if said["error"] is not None:
        module.fail_json(msg=said["error"]["message"], error=said["error"], **values)
    module.exit_json(**values)
