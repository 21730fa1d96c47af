#!/usr/bin/python
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Ansible module: how a Xen host stands."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: info
short_description: Find out how a Xen host stands
description:
  - Runs C(xsplice status) on the host, and returns what it says. Nothing is changed.
author:
  - The xsplice developers (!UNKNOWN)
options:
  executable:
    description: The program.
    default: xsplice
    type: str
attributes:
  check_mode:
    description: Can run in check mode; it never changes anything.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
"""

EXAMPLES = r"""
- name: Find out how the host stands
  xsplice.host.info:
  register: livepatch

- name: Stop if it is not as wanted
  ansible.builtin.assert:
    that: livepatch.condition in ['current', 'nothing-to-apply']
"""

RETURN = r"""
condition:
  description: The state of the host, such as C(current); null if it is not known.
  returned: always
  type: str
result:
  description: What the command printed as C(result), as its schema says.
  returned: always
  type: dict
error:
  description: What the command printed as C(error).
  returned: on failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.xsplice.host.plugins.module_utils.command import (
    EXECUTABLE,
    answer,
    told,
)


def main():
    """Runs the command, and says what it said."""
    module = AnsibleModule(argument_spec=dict(EXECUTABLE), supports_check_mode=True)
    answer(module, told(module, ["status"])[1], {})


if __name__ == "__main__":
    main()
