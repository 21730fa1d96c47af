#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ansible module: brings a Xen host to its live patch level."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: livepatch
short_description: Bring a Xen host to its live patch level
description:
  - Runs C(xsplice sync) on the host, and returns what it says.
  - What the host is to have is in its policy and its store; see C(xsplice-sync(1)).
  - In check mode, C(xsplice plan) says whether a sync would change anything.
author:
  - The xsplice developers (!UNKNOWN)
options:
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
  timeout:
    description: Time for each rendezvous of the CPUs, in milliseconds. It has no effect in check mode.
    default: 30
    type: int
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
    description: Can run in check mode and say what would be changed.
    support: full
  diff_mode:
    description: Returns the level before and after.
    support: full
"""

EXAMPLES = r"""
- name: Bring the host to what it is to have
  xsplice.host.livepatch:
    wait: 60

- name: Bring the host back
  xsplice.host.livepatch:
    level: 1
    allow_downgrade: true
"""

RETURN = r"""
condition:
  description: The state of the host afterwards, such as C(current); null if it is not known.
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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xsplice.host.plugins.module_utils.command import (
    EXECUTABLE,
    answer,
    told,
)


def command(module):
    """The command that does what is asked for, or in check mode says what would be done."""
    wanted = module.params
    words = ["plan" if module.check_mode else "sync"]
    if wanted["level"] is not None:
        words += ["--level", str(wanted["level"])]
    if wanted["allow_downgrade"]:
        words.append("--allow-downgrade")
    if wanted["allow_gap"]:
        words.append("--allow-gap")
    if not module.check_mode:
        words += ["--timeout", str(wanted["timeout"]), "--wait", str(wanted["wait"])]
    return words


def main():
    """Runs the command, and says what it did."""
    module = AnsibleModule(
        argument_spec=dict(
            EXECUTABLE,
            level={"type": "int"},
            allow_downgrade={"type": "bool", "default": False},
            allow_gap={"type": "bool", "default": False},
            timeout={"type": "int", "default": 30},
            wait={"type": "int", "default": 0},
        ),
        supports_check_mode=True,
    )
    code, said = told(module, command(module))
    more = {}
    if module.check_mode:
        # A plan changes nothing, and exits with 3 if there are steps.
        more["changed"] = code == 3
    result = said["result"] or {}
    if "from" in result:
        after = result["to"] if module.check_mode else result["level"]
        more["diff"] = {
            "before": "level %s\n" % result["from"],
            "after": "level %s\n" % after,
        }
    answer(module, said, more)


if __name__ == "__main__":
    main()
