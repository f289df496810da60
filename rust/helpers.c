// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel offers only as macros, inline functions or structs that the Rust bindings lack:
 * thin wrappers, compiled against the kernel's own headers so that no declaration is copied. What
 * they are used for, and why that is sound, is said in the Rust files beside this one.
 */
#include <linux/audit.h>
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/ima.h>
#include <linux/kallsyms.h>
#include <linux/kmemleak.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/ratelimit.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tpm.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <crypto/hash.h>
#include <crypto/hash_info.h>

#include "helpers.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 2, 0)
#error "ima_trim needs Linux 7.2 or later: before that IMA has no exclusion of writers of its list"
#endif

/*
 * What the kernel's type information proves of IMA is where its data are, not who reads and frees
 * what and when. The newest release on which that was tried comes from Kbuild.
 */
const bool ima_trim_newer =
	LINUX_VERSION_CODE > KERNEL_VERSION(IMA_TRIM_TESTED_MAJOR, IMA_TRIM_TESTED_MINOR, 255);

/* From tools/Cargo.toml, by way of Kbuild. Here because module! has no field for it. */
MODULE_VERSION(IMA_TRIM_VERSION);

const size_t ima_trim_symbol_len = KSYM_SYMBOL_LEN;

const u32 ima_trim_measure_pcr = CONFIG_IMA_MEASURE_PCR_IDX;
const bool ima_trim_htable_disabled = IS_ENABLED(CONFIG_IMA_DISABLE_HTABLE);

/* Here because the kernel crate has no parameters that are strings, nor, before 7.3, bool ones. */
bool ima_trim_guard = true;
module_param_named(guard, ima_trim_guard, bool, 0444);
MODULE_PARM_DESC(guard, "keep other writers of the measurement list out while loaded (default: on)");

char *ima_trim_reclaim = "keep";
module_param_named(reclaim, ima_trim_reclaim, charp, 0444);
MODULE_PARM_DESC(reclaim, "memory of trimmed records: keep, compact or flush (default: keep)");

unsigned int ima_trim_reader_wait_ms = 1000;
module_param_named(reader_wait_ms, ima_trim_reader_wait_ms, uint, 0444);
MODULE_PARM_DESC(reader_wait_ms, "wait for readers of the list to go, in ms (default: 1000)");

bool ima_trim_untested;
module_param_named(untested, ima_trim_untested, bool, 0444);
MODULE_PARM_DESC(untested, "allow compact and flush on untested kernels (default: off)");

/*
 * register_kprobe() looks the name up, stores the address, and only then refuses what is not code.
 * The probe is disabled, so that nothing would be armed if the name were a function's after all.
 */
int ima_trim_data_symbol(const char *name, unsigned long *address)
{
	struct kprobe kp = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	int ret = register_kprobe(&kp);

	if (!ret) {
		unregister_kprobe(&kp);
		return -EPROTOTYPE;
	}
	if (!kp.addr)
		return ret;
	*address = (unsigned long)kp.addr;
	return 0;
}

/* Exported data: its address is known without a look-up, and so tells whether look-ups work. */
const void *ima_trim_exported_data(void)
{
	return hash_algo_name;
}

bool ima_trim_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

/* Whether this task is to be frozen, and was sent the signal that ends its system call. */
bool ima_trim_freezing(void)
{
	return freezing(current) && signal_pending(current);
}

void ima_trim_cond_resched(void)
{
	cond_resched();
}

/* For what whoever may read a file can cause as often as they like. */
bool ima_trim_may_log(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}

/* For what can be done without: nobody is killed to make room for it. */
void *ima_trim_zalloc(size_t size)
{
	return kzalloc(size, GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN);
}

/* As misc_open() does: from here on the file holds a reference on the owner of @fops. */
int ima_trim_file_pin(struct file *file, const struct file_operations *fops)
{
	fops = fops_get(fops);
	if (!fops)
		return -ENODEV;
	replace_fops(file, fops);
	return 0;
}

bool ima_trim_file_writes(const struct file *file)
{
	return file->f_mode & FMODE_WRITE;
}

/* Whoever opens @inode from now on, or goes on with @fops that they found there, gets its error. */
void ima_trim_inode_retire(struct inode *inode, struct file_operations *fops)
{
	make_bad_inode(inode);
	WRITE_ONCE(fops->open, inode->i_fop->open);
}

/* Without Tasks RCU, so without preemption (kprobes select it otherwise), this is synchronize_rcu(). */
void ima_trim_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

/* Whether anybody else has a reference: a path that is being opened does, through its dentry. */
bool ima_trim_inode_shared(struct inode *inode)
{
	return icount_read_once(inode) > 1;
}

void ima_trim_leak(const void *memory)
{
	kmemleak_not_leak(memory);
}

void ima_trim_list_poison(struct list_head *entry)
{
	entry->next = LIST_POISON1;
	entry->prev = LIST_POISON2;
}

bool ima_trim_list_poisoned(const struct list_head *next,
			    const struct list_head *prev)
{
	return next == LIST_POISON1 && prev == LIST_POISON2;
}

/* op, cause, res and errno are as in integrity_audit_message(), which is not exported. */
int ima_trim_audit(const char *cause, u64 records, u64 violations,
		   u64 records_trimmed, u64 violations_trimmed, u64 trims)
{
	struct audit_buffer *ab;

	if (!IS_ENABLED(CONFIG_AUDIT))
		return 0;
	ab = audit_log_start(audit_context(), GFP_KERNEL, AUDIT_INTEGRITY_PCR);
	if (!ab)
		return -ENOMEM;
	audit_log_format(ab, "op=ima_trim cause=%s", cause);
	audit_log_task_info(ab);
	audit_log_format(ab, " records=%llu violations=%llu", records, violations);
	audit_log_format(ab, " records_trimmed=%llu violations_trimmed=%llu trims=%llu",
			 records_trimmed, violations_trimmed, trims);
	audit_log_format(ab, " res=1 errno=0");
	audit_log_end(ab);
	return 0;
}

/*
 * One after the other: events are measured in the order in which they happen. Frozen before devices
 * are suspended.
 */
struct workqueue_struct *ima_trim_workqueue(void)
{
	return alloc_ordered_workqueue("ima_trim", WQ_FREEZABLE);
}

/* @data ends with a NUL that @len does not count: IMA takes it for a name, too. */
int ima_trim_measure(const char *event, const u8 *data, size_t len)
{
	return ima_measure_critical_data("ima_trim", event, data, len, false, NULL, 0);
}

int ima_trim_tpm_bank(const struct tpm_chip *chip, u32 index, u16 *alg_id,
		      u16 *digest_size, u16 *crypto_id)
{
	if (index >= chip->nr_allocated_banks ||
	    index >= ARRAY_SIZE(chip->allocated_banks))
		return -ERANGE;
	*alg_id = chip->allocated_banks[index].alg_id;
	*digest_size = chip->allocated_banks[index].digest_size;
	*crypto_id = chip->allocated_banks[index].crypto_id;
	return 0;
}

int ima_trim_pcr_read(struct tpm_chip *chip, u32 pcr, u16 alg_id, u8 *value,
		      size_t size)
{
	struct tpm_digest digest = { .alg_id = alg_id };
	int ret;

	if (size > sizeof(digest.digest))
		return -EINVAL;
	ret = tpm_pcr_read(chip, pcr, &digest);
	if (ret)
		return ret;
	memcpy(value, digest.digest, size);
	return 0;
}

const char *ima_trim_hash_name(u32 algo, u32 *digest_size)
{
	if (algo >= HASH_ALGO__LAST)
		return NULL;
	*digest_size = hash_digest_size[algo];
	return hash_algo_name[algo];
}

struct crypto_shash *ima_trim_shash_alloc(const char *name, u32 *digest_size)
{
	struct crypto_shash *tfm = crypto_alloc_shash(name, 0, 0);

	if (!IS_ERR(tfm))
		*digest_size = crypto_shash_digestsize(tfm);
	return tfm;
}

void ima_trim_shash_free(struct crypto_shash *tfm)
{
	crypto_free_shash(tfm);
}

int ima_trim_shash(struct crypto_shash *tfm, const u8 *data, u32 len, u8 *out)
{
	return crypto_shash_tfm_digest(tfm, data, len, out);
}
