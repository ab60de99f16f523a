import pytest
import torch

from custom_components.inferers import free_memory

CPU = torch.device("cpu")
GROUP = "sys/fs/cgroup/jobs/job_1"


@pytest.fixture
def system(tmp_path):
    """A root folder with what Linux says of its memory: 8 GB available."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal:  16000000 kB\nMemFree:  1000000 kB\nMemAvailable:  8000000 kB\n")
    write("proc/self/cgroup", "1:name=systemd:/\n0::/jobs/job_1\n")
    return tmp_path, write


def test_linux_says_what_is_available(system):
    root, write = system
    assert free_memory(CPU, root) == 8_000_000 * 1024
    write(f"{GROUP}/memory.max", "max\n")
    write(f"{GROUP}/memory.current", "100\n")
    assert free_memory(CPU, root) == 8_000_000 * 1024


@pytest.mark.parametrize("folder", [GROUP, "sys/fs/cgroup/jobs"])
def test_the_limit_of_a_container_or_job_counts_and_files_in_memory_do_not(system, folder):
    root, write = system
    write(f"{folder}/memory.max", "3000\n")
    write(f"{folder}/memory.current", "2500\n")
    assert free_memory(CPU, root) == 500
    write(f"{folder}/memory.stat", "anon 1000\ninactive_file 700\n")
    assert free_memory(CPU, root) == 1200


def test_a_container_sees_its_own_limit_at_the_root(system):
    root, write = system
    write("proc/self/cgroup", "0::/\n")
    write("sys/fs/cgroup/memory.max", "3000\n")
    write("sys/fs/cgroup/memory.current", "5000\n")
    assert free_memory(CPU, root) == 0


# inside a container the file names the group as the host does, but its own group is the root of what is mounted
@pytest.mark.parametrize("folder", ["memory/jobs/job_1", "memory/jobs", "memory"])
def test_the_limit_counts_in_control_groups_of_version_1_too(system, folder):
    root, write = system
    write("proc/self/cgroup", "5:cpu,cpuacct:/jobs/job_2\n4:hugetlb,memory:/jobs/job_1\n1:name=systemd:/a:b\n0::/\n")
    write("sys/fs/cgroup/memory/jobs/job_2/memory.limit_in_bytes", "7\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")  # none
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2500\n")
    assert free_memory(CPU, root) == 8_000_000 * 1024
    write(f"sys/fs/cgroup/{folder}/memory.limit_in_bytes", "3000\n")
    write(f"sys/fs/cgroup/{folder}/memory.usage_in_bytes", "2500\n")
    assert free_memory(CPU, root) == 500
    write(f"sys/fs/cgroup/{folder}/memory.stat", "inactive_file 100\ntotal_inactive_file 700\n")
    assert free_memory(CPU, root) == 1200


def test_other_systems_have_some_memory_too(tmp_path):
    assert free_memory(CPU, tmp_path) > 1 << 28


def test_this_machine_has_memory():
    assert 1 << 24 < free_memory(CPU) < 1 << 50
