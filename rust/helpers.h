/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the kernel offers only as macros, inline functions or structs that the Rust bindings lack.
 * Each function is declared a second time in ffi.rs, which is its only user.
 */
#ifndef IMA_TRIM_HELPERS_H
#define IMA_TRIM_HELPERS_H

#include <linux/types.h>

struct crypto_shash;
struct file;
struct file_operations;
struct inode;
struct key;
struct list_head;
struct tpm_chip;
struct workqueue_struct;

extern const u32 ima_trim_measure_pcr;
extern const bool ima_trim_htable_disabled;
extern bool ima_trim_guard;
extern char *ima_trim_reclaim;
extern unsigned int ima_trim_reader_wait_ms;
extern bool ima_trim_untested;
extern const bool ima_trim_newer;
extern const size_t ima_trim_symbol_len;

int ima_trim_data_symbol(const char *name, unsigned long *address);
const void *ima_trim_exported_data(void);

bool ima_trim_fatal_signal_pending(void);
bool ima_trim_freezing(void);
void ima_trim_cond_resched(void);
bool ima_trim_may_log(void);
void *ima_trim_zalloc(size_t size);

int ima_trim_file_pin(struct file *file, const struct file_operations *fops);
bool ima_trim_file_writes(const struct file *file);
void ima_trim_inode_retire(struct inode *inode, struct file_operations *fops);
void ima_trim_synchronize_rcu_tasks(void);
bool ima_trim_inode_shared(struct inode *inode);
void ima_trim_leak(const void *memory);

void ima_trim_list_poison(struct list_head *entry);
bool ima_trim_list_poisoned(const struct list_head *next,
			    const struct list_head *prev);

int ima_trim_audit(const char *cause, u64 records, u64 violations,
		   u64 records_trimmed, u64 violations_trimmed, u64 trims);
struct workqueue_struct *ima_trim_workqueue(void);
int ima_trim_measure(const char *event, const u8 *data, size_t len);

int ima_trim_tpm_bank(const struct tpm_chip *chip, u32 index, u16 *alg_id,
		      u16 *digest_size, u16 *crypto_id);
int ima_trim_pcr_read(struct tpm_chip *chip, u32 pcr, u16 alg_id, u8 *value,
		      size_t size);

const char *ima_trim_hash_name(u32 algo, u32 *digest_size);
struct crypto_shash *ima_trim_shash_alloc(const char *name, u32 *digest_size);
void ima_trim_shash_free(struct crypto_shash *tfm);
int ima_trim_shash(struct crypto_shash *tfm, const u8 *data, u32 len, u8 *out);

size_t ima_trim_certificate(size_t index, const u8 **data);
struct key *ima_trim_keyring(void);
int ima_trim_keyring_add(struct key *keyring, const char *name, const u8 *certificate, size_t size);
int ima_trim_keyring_seal(struct key *keyring);
void ima_trim_keyring_put(struct key *keyring);
int ima_trim_verify(struct key *keyring, const u8 *message, size_t size, u8 *content, size_t room,
		    size_t *taken);

#endif
