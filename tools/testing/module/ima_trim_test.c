// SPDX-License-Identifier: GPL-2.0
/*
 * For tests and measurements only; never load this on a machine that matters.
 *
 * What it does is asked for by its parameters, /sys/module/ima_trim_test/parameters/:
 *
 *   append   write N: IMA is given N buffers to measure, each one different, by a policy with
 *            "measure func=CRITICAL_DATA label=ima_trim_test". Gives the nanoseconds taken.
 *   tpm      N or Y: whether IMA extends the TPM. Off, the values of PCRs and list part.
 *   probe    Y or N: whether a thread takes and drops ima_extend_list_mutex all the time. Gives
 *            "<times> <longest wait in ns>" since it was started.
 *   hash     write "<records> <bytes> <algorithm> ...": extends for so many records, each of so many
 *            bytes in every algorithm, with nothing else. Gives the nanoseconds taken.
 *
 * And /dev/ima_trim_btf is the kernel's BTF, to be written to.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/ima.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <crypto/sha1.h>
#include <crypto/sha2.h>

/* register_kprobe() looks the name up and stores the address before it refuses what is not code. */
static void *find(const char *name)
{
	struct kprobe kp = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};

	if (!register_kprobe(&kp)) {
		unregister_kprobe(&kp);
		return NULL;
	}
	return kp.addr;
}

static struct mutex *extend_list_mutex;
static void **tpm_chip;
static void *btf_start;
static size_t btf_size;

static u64 append_ns;
static u64 serial;

static int append_set(const char *value, const struct kernel_param *kp)
{
	char buffer[64];
	unsigned int count;
	u64 since;
	int ret = kstrtouint(value, 0, &count);

	if (ret)
		return ret;
	since = ktime_get_ns();
	for (; count; count--) {
		memset(buffer, 0, sizeof(buffer));
		scnprintf(buffer, sizeof(buffer), "%llu", serial++);
		ret = ima_measure_critical_data("ima_trim_test", "record", buffer,
						sizeof(buffer), false, NULL, 0);
		if (ret < 0)
			return ret;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	append_ns = ktime_get_ns() - since;
	return 0;
}

static int append_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%llu\n", append_ns);
}

static const struct kernel_param_ops append_ops = { .set = append_set, .get = append_get };
module_param_cb(append, &append_ops, NULL, 0600);

static void *real_chip;

/* Appending reads the pointer under the mutex. */
static int tpm_set(const char *value, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	mutex_lock(extend_list_mutex);
	if (!on && *tpm_chip) {
		real_chip = *tpm_chip;
		*tpm_chip = NULL;
	} else if (on && real_chip) {
		*tpm_chip = real_chip;
		real_chip = NULL;
	}
	mutex_unlock(extend_list_mutex);
	return 0;
}

static int tpm_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", real_chip ? 'N' : 'Y');
}

static const struct kernel_param_ops tpm_ops = { .set = tpm_set, .get = tpm_get };
module_param_cb(tpm, &tpm_ops, NULL, 0600);

static struct task_struct *prober;
static u64 probe_count;
static u64 probe_longest;

static int probe_thread(void *unused)
{
	while (!kthread_should_stop()) {
		u64 since = ktime_get_ns();
		u64 waited;

		mutex_lock(extend_list_mutex);
		waited = ktime_get_ns() - since;
		mutex_unlock(extend_list_mutex);
		WRITE_ONCE(probe_count, probe_count + 1);
		if (waited > probe_longest)
			WRITE_ONCE(probe_longest, waited);
		cond_resched();
	}
	return 0;
}

static int probe_set(const char *value, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	if (!on && prober) {
		kthread_stop(prober);
		prober = NULL;
	} else if (on && !prober) {
		struct task_struct *task = kthread_run(probe_thread, NULL, "ima_trim_probe");

		if (IS_ERR(task))
			return PTR_ERR(task);
		prober = task;
	}
	if (on) {
		WRITE_ONCE(probe_count, 0);
		WRITE_ONCE(probe_longest, 0);
	}
	return 0;
}

static int probe_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%llu %llu\n", READ_ONCE(probe_count), READ_ONCE(probe_longest));
}

static const struct kernel_param_ops probe_ops = { .set = probe_set, .get = probe_get };
module_param_cb(probe, &probe_ops, NULL, 0600);

static u64 hash_ns;

/* What is hashed is a value and a digest of the same size, as for an extend. */
static int hash_set(const char *value, const struct kernel_param *kp)
{
	bool with_sha1 = strstr(value, "sha1");
	bool with_sha256 = strstr(value, "sha256");
	bool with_sha384 = strstr(value, "sha384");
	bool with_sha512 = strstr(value, "sha512");
	u8 data[4][2 * SHA512_DIGEST_SIZE] = {};
	unsigned int count;
	u64 since;
	int ret = sscanf(value, "%u", &count);

	if (ret != 1)
		return -EINVAL;
	since = ktime_get_ns();
	for (; count; count--) {
		if (with_sha1)
			sha1(data[0], 2 * SHA1_DIGEST_SIZE, data[0]);
		if (with_sha256)
			sha256(data[1], 2 * SHA256_DIGEST_SIZE, data[1]);
		if (with_sha384)
			sha384(data[2], 2 * SHA384_DIGEST_SIZE, data[2]);
		if (with_sha512)
			sha512(data[3], 2 * SHA512_DIGEST_SIZE, data[3]);
		if (!(count % 64)) {
			if (fatal_signal_pending(current))
				return -EINTR;
			cond_resched();
		}
	}
	hash_ns = ktime_get_ns() - since;
	return 0;
}

static int hash_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%llu\n", hash_ns);
}

static const struct kernel_param_ops hash_ops = { .set = hash_set, .get = hash_get };
module_param_cb(hash, &hash_ops, NULL, 0600);

/* The kernel's own mapping of its BTF cannot be written to. */
static ssize_t btf_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	struct page *page;
	void *address, *mapping;
	size_t left;

	if (*pos < 0 || *pos >= btf_size)
		return -ENOSPC;
	address = btf_start + *pos;
	left = min3(count, btf_size - (size_t)*pos, PAGE_SIZE - offset_in_page(address));
	page = virt_to_page(__va(__pa_symbol((unsigned long)address)));
	mapping = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!mapping)
		return -ENOMEM;
	left -= copy_from_user(mapping + offset_in_page(address), from, left);
	vunmap(mapping);
	if (!left)
		return -EFAULT;
	*pos += left;
	return left;
}

static ssize_t btf_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	return simple_read_from_buffer(to, count, pos, btf_start, btf_size);
}

static const struct file_operations test_btf_fops = {
	.owner = THIS_MODULE,
	.read = btf_read,
	.write = btf_write,
	.llseek = default_llseek,
};

static struct miscdevice btf_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ima_trim_btf",
	.fops = &test_btf_fops,
	.mode = 0600,
};

static int __init ima_trim_test_init(void)
{
	void *stop = find("__stop_BTF");

	extend_list_mutex = find("ima_extend_list_mutex");
	tpm_chip = find("ima_tpm_chip");
	btf_start = find("__start_BTF");
	if (!extend_list_mutex || !tpm_chip || !btf_start || stop <= btf_start)
		return -ENOENT;
	btf_size = stop - btf_start;
	return misc_register(&btf_device);
}

static void __exit ima_trim_test_exit(void)
{
	if (prober)
		kthread_stop(prober);
	if (real_chip)
		*tpm_chip = real_chip;
	misc_deregister(&btf_device);
}

module_init(ima_trim_test_init);
module_exit(ima_trim_test_exit);
MODULE_DESCRIPTION("What the tests of ima_trim need of the kernel");
MODULE_LICENSE("GPL");
