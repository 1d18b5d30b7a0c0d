"""Every registered policy keeps the public contract."""

import pytest

from tierline.core.errors import InvalidInput, UnknownName
from tierline.policies.jobs import POLICIES, make_policy, policy_class
from tierline.testing.policies import JobPolicyContract

WITHOUT_TRUTH = sorted(set(POLICIES) - {"clairvoyant"})


@pytest.mark.parametrize("name", WITHOUT_TRUTH)
class TestRegistered(JobPolicyContract):
    @pytest.fixture(autouse=True)
    def _take(self, name):
        self.name = name

    def make(self):
        return make_policy(self.name)


for _attribute in [a for a in dir(JobPolicyContract) if a.startswith("test_")]:
    # parametrize hands `name` to every test; the suite's tests do not take it
    def _wrap(test):
        def run(self, name):
            test(self)

        run.__name__ = test.__name__
        return run

    setattr(TestRegistered, _attribute, _wrap(getattr(JobPolicyContract, _attribute)))


def test_every_policy_is_where_the_registry_says():
    for name in POLICIES:
        assert policy_class(name).__module__.endswith(f".{name}")


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(UnknownName, match="did you mean 'fifo'"):
        make_policy("fifoo")


def test_a_policy_of_ones_own_by_module_and_class():
    assert type(make_policy("tierline.policies.jobs.fifo:FirstInFirstOut")).__name__ == "FirstInFirstOut"
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        make_policy("no_such_module:Thing")


def test_wrong_options_are_refused():
    with pytest.raises(InvalidInput, match="does not take these options"):
        make_policy("explsched", {"speed": 3})
