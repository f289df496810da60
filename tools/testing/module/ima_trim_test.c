// SPDX-License-Identifier: GPL-2.0
/*
 * For tests and measurements only; never load this on a machine that matters.
 *
 * What it does is asked for by its parameters, /sys/module/ima_trim_test/parameters/:
 *
 *   append   write N: IMA is given N buffers to measure, each one different, by a policy with
 *            "measure func=CRITICAL_DATA label=ima_trim_test". Gives the nanoseconds taken, and the
 *            number of buffers ever measured: each has its number, in decimal digits.
 *   tpm      N or Y: whether IMA extends the TPM. Off, the values of PCRs and list part.
 *   signals  Y or N: whether a pending signal ends a command of the TPM, as with drivers that wait
 *            interruptibly.
 *   slow     write N: each command of the TPM is held up for N ms before it is sent. With signals=Y
 *            that is a wait that a signal ends.
 *   reboot   write S: from when IMA has been told of it, a reboot is held up until S seconds from now.
 *   probe    Y or N: whether a thread takes and drops ima_extend_list_mutex all the time. Gives
 *            "<times> <longest wait in ns> <what 9 of 10 waits do not exceed>" since Y was written
 *            last; a mutex that was free is no wait. The third is of the first 4096 waits.
 *   appender Y or N: likewise, whether a thread has IMA measure a buffer every 100 us or so, with
 *            the times that it took.
 *   stretch  write "<count> <ns>": so many stretches of so much work, with no lock. Gives the longest
 *            in ns: what interrupts and whoever preempts the thread make of a hold of that length.
 *   hash     write "<records> <bytes> <algorithm> ...": extends for so many records, each of so many
 *            bytes in every algorithm, with nothing else. Gives the nanoseconds taken.
 *   links    N or Y: whether the link of the list's first record leads back to the head, which only
 *            a cut looks at. Off, the list must not be trimmed by anybody but the module.
 *
 * And /dev/ima_trim_btf is the kernel's BTF, to be written to.
 */
#include <linux/delay.h>
#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/ima.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/string.h>
#include <linux/tpm.h>
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
static struct tpm_chip **tpm_chip;
static void *btf_start;
static size_t btf_size;

static u64 append_ns;
static atomic64_t serial;

static int append(void)
{
	char buffer[64] = {};
	int ret;

	scnprintf(buffer, sizeof(buffer), "%lld", atomic64_inc_return(&serial));
	ret = ima_measure_critical_data("ima_trim_test", "record", buffer, sizeof(buffer), false,
					NULL, 0);
	return min(ret, 0);
}

static int append_set(const char *value, const struct kernel_param *kp)
{
	unsigned int count;
	u64 since;
	int ret = kstrtouint(value, 0, &count);

	since = ktime_get_ns();
	for (; !ret && count; count--) {
		ret = fatal_signal_pending(current) ? -EINTR : append();
		cond_resched();
	}
	append_ns = ktime_get_ns() - since;
	return ret;
}

static int append_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%llu %lld\n", append_ns, atomic64_read(&serial));
}

static const struct kernel_param_ops append_ops = { .set = append_set, .get = append_get };
module_param_cb(append, &append_ops, NULL, 0600);

static bool suspended;

/* As between suspending and resuming: extends fail at once, and IMA goes on. */
static int tpm_set(const char *value, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	mutex_lock(extend_list_mutex);
	if (on)
		(*tpm_chip)->flags &= ~TPM_CHIP_FLAG_SUSPENDED;
	else
		(*tpm_chip)->flags |= TPM_CHIP_FLAG_SUSPENDED;
	suspended = !on;
	mutex_unlock(extend_list_mutex);
	return 0;
}

static int tpm_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", suspended ? 'N' : 'Y');
}

static const struct kernel_param_ops tpm_ops = { .set = tpm_set, .get = tpm_get };
module_param_cb(tpm, &tpm_ops, NULL, 0600);

static struct tpm_class_ops changed;
static const struct tpm_class_ops *driver;
static bool signals;
static unsigned int slow_ms;

/*
 * What a driver that waits for an interrupt does with a signal: it gives the command up, but not for
 * the one by which the machine's freezer wakes a task.
 */
static bool gives_up(void)
{
	if (!READ_ONCE(signals) || !signal_pending(current))
		return false;
	if (freezing(current)) {
		clear_thread_flag(TIF_SIGPENDING);
		return false;
	}
	return true;
}

static int changed_send(struct tpm_chip *chip, u8 *buffer, size_t size, size_t length)
{
	unsigned long until = jiffies + msecs_to_jiffies(READ_ONCE(slow_ms));

	do {
		if (gives_up())
			return -ETIME;
		if (!time_before(jiffies, until))
			return driver->send(chip, buffer, size, length);
		if (READ_ONCE(signals))
			schedule_timeout_interruptible(1);
		else
			schedule_timeout_uninterruptible(1);
	} while (true);
}

/* The driver's operations are changed as long as anything is asked of them. */
static int change_driver(bool wanted)
{
	struct tpm_chip *chip = *tpm_chip;
	int ret = 0;

	down_write(&chip->ops_sem);
	if (!chip->ops) {
		ret = -ENODEV;
	} else if (wanted && !driver) {
		driver = chip->ops;
		memcpy(&changed, driver, sizeof(changed));
		changed.send = changed_send;
		chip->ops = &changed;
	} else if (!wanted && driver) {
		chip->ops = driver;
		driver = NULL;
	}
	up_write(&chip->ops_sem);
	return ret;
}

static int signals_set(const char *value, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	WRITE_ONCE(signals, on);
	return change_driver(signals || slow_ms);
}

static int signals_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", signals ? 'Y' : 'N');
}

static const struct kernel_param_ops signals_ops = { .set = signals_set, .get = signals_get };
module_param_cb(signals, &signals_ops, NULL, 0600);

static int slow_set(const char *value, const struct kernel_param *kp)
{
	unsigned int ms;
	int ret = kstrtouint(value, 0, &ms);

	if (ret)
		return ret;
	WRITE_ONCE(slow_ms, ms);
	return change_driver(signals || slow_ms);
}

static int slow_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%u\n", slow_ms);
}

static const struct kernel_param_ops slow_ops = { .set = slow_set, .get = slow_get };
module_param_cb(slow, &slow_ops, NULL, 0600);

static unsigned long held_until;

static int hold_reboot(struct notifier_block *block, unsigned long action, void *data)
{
	while (time_before(jiffies, READ_ONCE(held_until)))
		schedule_timeout_interruptible(HZ / 50 + 1);
	return NOTIFY_DONE;
}

/* IMA's has priority 0. */
static struct notifier_block reboot_block = { .notifier_call = hold_reboot, .priority = -1 };

static int reboot_set(const char *value, const struct kernel_param *kp)
{
	unsigned int seconds;
	int ret = kstrtouint(value, 0, &seconds);

	if (!ret)
		WRITE_ONCE(held_until, jiffies + seconds * HZ);
	return ret;
}

static const struct kernel_param_ops reboot_ops = { .set = reboot_set };
module_param_cb(reboot, &reboot_ops, NULL, 0200);

/* A thread that does something over and over, and keeps the times that it took. */
struct watch {
	u64 (*act)(void);
	unsigned int rest_us;
	struct task_struct *task;
	u64 count;
	u64 longest;
	unsigned int kept;
	u64 times[4096];
};

static u64 take_mutex(void)
{
	u64 waited = 0;

	/* What preempts this thread is no wait for the mutex. */
	if (!mutex_trylock(extend_list_mutex)) {
		u64 since = ktime_get_ns();
		bool taken;

		/*
		 * mutex_lock() spins with cpu_relax(), for which the emulator leaves the guest's
		 * code: that takes longer than the holds that are looked for.
		 */
		do {
			taken = mutex_trylock(extend_list_mutex);
		} while (!taken && !need_resched());
		if (!taken)
			mutex_lock(extend_list_mutex);
		waited = ktime_get_ns() - since;
	}
	mutex_unlock(extend_list_mutex);
	return waited;
}

static u64 append_one(void)
{
	u64 since = ktime_get_ns();

	append();
	return ktime_get_ns() - since;
}

static struct watch probe = { .act = take_mutex };
static struct watch appender = { .act = append_one, .rest_us = 100 };

static int watch_thread(void *data)
{
	struct watch *watch = data;

	while (!kthread_should_stop()) {
		u64 took = watch->act();

		WRITE_ONCE(watch->count, watch->count + 1);
		if (took > READ_ONCE(watch->longest))
			WRITE_ONCE(watch->longest, took);
		if (took && READ_ONCE(watch->kept) < ARRAY_SIZE(watch->times)) {
			watch->times[watch->kept] = took;
			/* Pairs with the acquire of whoever reads the times. */
			smp_store_release(&watch->kept, watch->kept + 1);
		}
		if (watch->rest_us)
			usleep_range(watch->rest_us, watch->rest_us + 50);
		cond_resched();
	}
	return 0;
}

static int watch_set(const char *value, const struct kernel_param *kp)
{
	struct watch *watch = kp->arg;
	bool on;
	int ret = kstrtobool(value, &on);

	if (ret)
		return ret;
	if (!on && watch->task) {
		kthread_stop(watch->task);
		watch->task = NULL;
	} else if (on && !watch->task) {
		struct task_struct *task = kthread_run(watch_thread, watch, "ima_trim_watch");

		if (IS_ERR(task))
			return PTR_ERR(task);
		watch->task = task;
	}
	if (on) {
		WRITE_ONCE(watch->count, 0);
		WRITE_ONCE(watch->longest, 0);
		WRITE_ONCE(watch->kept, 0);
	}
	return 0;
}

static int compare(const void *one, const void *other)
{
	return cmp_int(*(const u64 *)one, *(const u64 *)other);
}

static int watch_get(char *buffer, const struct kernel_param *kp)
{
	struct watch *watch = kp->arg;
	size_t kept = smp_load_acquire(&watch->kept);
	u64 most = 0, *times;

	times = kmemdup_array(watch->times, kept, sizeof(*times), GFP_KERNEL);
	if (!times)
		return -ENOMEM;
	if (kept) {
		sort(times, kept, sizeof(*times), compare, NULL);
		most = times[kept - 1 - kept / 10];
	}
	kfree(times);
	return sysfs_emit(buffer, "%llu %llu %llu\n", READ_ONCE(watch->count),
			  READ_ONCE(watch->longest), most);
}

static const struct kernel_param_ops watch_ops = { .set = watch_set, .get = watch_get };
module_param_cb(probe, &watch_ops, &probe, 0600);
module_param_cb(appender, &watch_ops, &appender, 0600);

static u64 stretch_ns;

static int stretch_set(const char *value, const struct kernel_param *kp)
{
	unsigned int count, ns;
	u64 longest = 0;

	if (sscanf(value, "%u %u", &count, &ns) != 2)
		return -EINVAL;
	for (; count; count--) {
		u64 since = ktime_get_ns(), took;

		do {
			took = ktime_get_ns() - since;
		} while (took < ns);
		longest = max(longest, took);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	stretch_ns = longest;
	return 0;
}

static int stretch_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%llu\n", stretch_ns);
}

static const struct kernel_param_ops stretch_ops = { .set = stretch_set, .get = stretch_get };
module_param_cb(stretch, &stretch_ops, NULL, 0600);

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

static struct list_head *measurements;
static struct list_head *broken;

static int links_set(const char *value, const struct kernel_param *kp)
{
	bool right;
	int ret = kstrtobool(value, &right);

	if (ret)
		return ret;
	mutex_lock(extend_list_mutex);
	if (right && broken) {
		broken->prev = measurements;
		broken = NULL;
	} else if (!right && !broken && !list_empty(measurements)) {
		broken = measurements->next;
		broken->prev = broken;
	}
	mutex_unlock(extend_list_mutex);
	return 0;
}

static int links_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%c\n", broken ? 'N' : 'Y');
}

static const struct kernel_param_ops links_ops = { .set = links_set, .get = links_get };
module_param_cb(links, &links_ops, NULL, 0600);

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
	int ret;

	extend_list_mutex = find("ima_extend_list_mutex");
	tpm_chip = find("ima_tpm_chip");
	measurements = find("ima_measurements");
	btf_start = find("__start_BTF");
	if (!extend_list_mutex || !tpm_chip || !*tpm_chip || !measurements || !btf_start ||
	    stop <= btf_start)
		return -ENOENT;
	btf_size = stop - btf_start;
	held_until = jiffies;
	ret = misc_register(&btf_device);
	if (ret)
		return ret;
	ret = register_reboot_notifier(&reboot_block);
	if (ret)
		misc_deregister(&btf_device);
	return ret;
}

static void __exit ima_trim_test_exit(void)
{
	if (probe.task)
		kthread_stop(probe.task);
	if (appender.task)
		kthread_stop(appender.task);
	mutex_lock(extend_list_mutex);
	if (broken)
		broken->prev = measurements;
	mutex_unlock(extend_list_mutex);
	if (suspended)
		(*tpm_chip)->flags &= ~TPM_CHIP_FLAG_SUSPENDED;
	change_driver(false);
	unregister_reboot_notifier(&reboot_block);
	misc_deregister(&btf_device);
}

module_init(ima_trim_test_init);
module_exit(ima_trim_test_exit);
MODULE_DESCRIPTION("What the tests of ima_trim need of the kernel");
MODULE_LICENSE("GPL");
