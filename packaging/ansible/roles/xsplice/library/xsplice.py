#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ansible module: brings a Xen host to its live patch level, or says how it stands."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: xsplice
short_description: Live patch level of a Xen host
description:
  - Runs C(xsplice sync) on the host, or C(xsplice status), and returns what it says.
  - What the host is to have is in its policy and its store; see C(xsplice-sync(1)).
  - In check mode, C(xsplice plan) says whether a sync would change anything.
options:
  state:
    description:
      - V(synced) brings the host to what it is to have.
      - V(known) only finds out how it stands.
    choices: [synced, known]
    default: synced
    type: str
  level:
    description: Reach this level, and not the one that the policy wants.
    type: int
  allow_downgrade:
    description: The level may fall.
    default: false
    type: bool
  allow_gap:
    description: The host may be without any payload for a moment.
    default: false
    type: bool
  wait:
    description: Seconds to wait while another xsplice is at work. It has no effect in check mode.
    default: 0
    type: int
  executable:
    description: The program.
    default: xsplice
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Bring the host to what it is to have
  xsplice:
    wait: 60

- name: Find out how it stands
  xsplice:
    state: known
  register: livepatch
"""

RETURN = r"""
condition:
  description: The state of the host, such as V(current); null if it is not known.
  returned: always
  type: str
result:
  description: What the command printed as C(result), as its schema says.
  returned: always
  type: dict
error:
  description: What the command printed as C(error), with the lines of the hypervisor.
  returned: on failure
  type: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule

# Version of the form that every command prints.
SCHEMA = 1


def command(module):
    """The command that does what is asked for, or in check mode says what would be done."""
    wanted = module.params
    if wanted["state"] == "known":
        return ["status"]
    words = ["plan" if module.check_mode else "sync"]
    if wanted["level"] is not None:
        words += ["--level", str(wanted["level"])]
    if wanted["allow_downgrade"]:
        words.append("--allow-downgrade")
    if wanted["allow_gap"]:
        words.append("--allow-gap")
    if wanted["wait"] and not module.check_mode:
        words += ["--wait", str(wanted["wait"])]
    return words


def told(module, words):
    """What the command prints for programs."""
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


def main():
    """Runs the command, and says what it did."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["synced", "known"],
                "default": "synced",
            },
            "level": {"type": "int"},
            "allow_downgrade": {"type": "bool", "default": False},
            "allow_gap": {"type": "bool", "default": False},
            "wait": {"type": "int", "default": 0},
            "executable": {"type": "str", "default": "xsplice"},
        },
        supports_check_mode=True,
    )
    words = command(module)
    code, said = told(module, words)
    result = said["result"] or {}
    answer = {
        # A plan changes nothing, and exits with 3 if there are steps.
        "changed": code == 3 if words[0] == "plan" else said["changed"],
        "condition": said["state"],
        "result": result,
        "warnings": result.get("warnings", []),
    }
    if words[0] in ("plan", "sync") and "from" in result:
        after = result["to"] if words[0] == "plan" else result["level"]
        answer["diff"] = {
            "before": "level %s\n" % result["from"],
            "after": "level %s\n" % after,
        }
    if said["error"] is not None:
        module.fail_json(msg=said["error"]["message"], error=said["error"], **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
