// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel offers only as macros, inline functions or structs that the Rust bindings lack:
 * thin wrappers, compiled against the kernel's own headers so that no declaration is copied. What
 * they are used for, and why that is sound, is said in the Rust files beside this one.
 */
#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/tpm.h>
#include <linux/version.h>
#include <crypto/hash.h>
#include <crypto/hash_info.h>

#include "helpers.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 2, 0)
#error "ima_trim needs Linux 7.2 or later: before that IMA has no exclusion of writers of its list"
#endif

const u32 ima_trim_measure_pcr = CONFIG_IMA_MEASURE_PCR_IDX;
const bool ima_trim_htable_disabled = IS_ENABLED(CONFIG_IMA_DISABLE_HTABLE);

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

void ima_trim_cond_resched(void)
{
	cond_resched();
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

/*
 * do_dentry_open() counts before it looks at i_fop, __fput() after its last use of f_op. Not counted
 * are O_PATH, which never looks at i_fop, and access mode 3, which neither reads nor writes.
 */
bool ima_trim_inode_opened(struct inode *inode)
{
	return atomic_read(&inode->i_readcount) > 0 ||
	       atomic_read(&inode->i_writecount) > 0;
}

/* Whether anybody else has a reference: a path that is being opened does, through its dentry. */
bool ima_trim_inode_shared(struct inode *inode)
{
	return icount_read_once(inode) > 1;
}

void ima_trim_list_poison(struct list_head *entry)
{
	entry->next = LIST_POISON1;
	entry->prev = LIST_POISON2;
}

u32 ima_trim_tpm_banks(const struct tpm_chip *chip)
{
	return chip->nr_allocated_banks;
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
